# ruff: noqa: SIM905 - a list of words is easier to read and to change as text
"""Lists of common English words, for telling a sentence's first word from a name."""

# Words that open sentences: after a doubtful full stop they decide for a boundary.
SENTENCE_STARTERS = frozenset(
    """
    A After Although An And As At Because Before Both But By During Each Every For From Furthermore He Her His
    However If In It Its Later Many Meanwhile Most Nevertheless On Once One Other Our She Since So Some Such That
    The Their Then There These They This Those Though Through Thus Today Two Under Until We When Where While With
    """.split()
)

# Pronouns, determiners, prepositions, adverbs, counts: capitalised only because they open the sentence.
FUNCTION_WORDS = frozenset(
    """
    a about above according across actual actually additional additionally after afterwards again against all
    almost along alongside already also alternative alternatively although altogether always among amongst an and
    annual annually another any anyone anything apart apparently approximately around as aside at available average
    away based because become been before behind being below beneath beside besides best better between beyond big
    both brief briefly broad but by can careful certain certainly clear clearly common commonly compared concerning
    consequently considering contemporary contrary conversely could current currently daily depending despite did
    different difficult direct do does down due during each earlier early eight eighteen eighth eighty either
    eleven else elsewhere enough entire equally especially essentially even eventually ever every everyone
    everything except exclusive extra famous few fewer fifteen fifty final finally financial five following for
    foremost former formerly forty four fourteen frequent frequently fresh from full fully fundamental further
    furthermore generally given gradually had half has have having he hence her here highest highly his
    historically how however hundred hundreds i ideally if immediate immediately important in increased indeed
    initial initially instead into is it its itself just large largely larger largest last lastly late later latter
    least less lesser let like likewise limited located longer lowest main mainly major many married may maybe me
    mean meanwhile million millions more moreover most mostly much must my nearby nearly necessary neither never
    nevertheless newly next nine nineteen ninety no nobody none nonetheless nor normally not notable notably note
    nothing notwithstanding now nowadays numerous obviously occasionally of off often older on once one ones only
    onto or original originally other others otherwise our out outside over overall owing own partial particular
    particularly per perhaps plenty politically possible possibly presently previous previously primarily primary
    principal prior pro probable probably prominent quite rather really recent recently regarding regardless
    relatively reliable remaining respective roughly same see select separate seven seventeen seventh seventy
    several severe shall she shortly should similar similarly simply since single six sixteen sixth sixty slightly
    smaller so some somebody someone something sometime sometimes somewhat soon specific specifically still
    subsequent subsequently substantial successive such supposedly surely ten tens than thanks that the their them
    themselves then there thereafter thereby therefore these they thirteen thirty this those though thousand
    thousands three through throughout thus to today together tomorrow too top total traditional traditionally true
    twelve twentieth twenty two typical typically ultimately under unfortunately unless unlike until unusually up
    upon us use used usually various vast very via was we well were what whatever when whenever where whereas
    wherever whether which whichever while whilst who whoever whole whom whose why widely will with within without
    would yes yesterday yet you younger your
    """.split()
)

# Nouns and adjectives: no name when they stand alone, but part of one before another capital ("North Korea").
CONTENT_WORDS = frozenset(
    """
    adult adults age agriculture air album analysis animal animals arable area areas army art back band basic birds
    birth black blood blue boats body book books boys business capital case cases central chief child children
    church cities city civil climate club coal coastal coffee cold companies company constitution cotton countries
    country court coverage critics crops crude culture currency customs data day days death deaths debt defense
    description details disease domestic earth east eastern economic economy education election elections electric
    electrical electricity empire employment energy environment estimates ethnic evidence examples exchange
    executive experts exports external facilities fall families family fans farmers farming federal fifth film
    films firms first fish fishing flag flights food foreign forest forests foundations fourth free future game
    games gas general girls global god gold good goods government governments grain great greater green gross
    ground group groups growth head health heavy high higher historians historic historical history home horses hot
    hours house households housing human humans ice imports income independence independent individual individuals
    industrial industry infant inflation information inside interest international internet iron islands items
    judges judicial key kids king kingdom kings labor labour lack lakes land landlocked language languages law laws
    leaders leading league legal legislative life light linguistic literacy little livestock living local long low
    lower machinery manufacturing marine maritime market markets match materials maternal matter medical members
    men mild military mineral minerals mining minister minor mobile modern money month monthly months mortality
    mother motor mountain mountains multiple music names narrow nation national nations native natural nature navy
    near new night normal north northern novel number numbers object office officials oil old open opponents order
    ordinary pairs parents parliament part parties parts party past patients people peoples permanent petroleum
    physical pipelines place places plans plant plants player players police political poor popular population
    ports poverty power prehistoric present president prime prince princes prison private problems production
    products professional property proponents public queen radio railways rain raw reading real reality red
    refugees regional regular relations religion religious remittances reports republic research researchers
    residents results revenue revenues rice rising river rivers roads round royal rubber rural sales salt scholars
    school schools science scientific scientists season second secondary security senior series services sharp
    shops short side silver simple slow small social society soil soils soldiers song songs sources south southern
    special species spoken sports spring stars state states statistics steel stone stories story streets strong
    students sugar suitable summer summers supporters supreme surface taken tax taxes tea teachers team technical
    telecommunications telephone temperature temperatures terrain territorial textbooks textiles things third
    timber time times tourism tourists towards towns trade trains transport transportation trees tropical types
    underground unemployment union upper urban victims villages visitors voters voting wages war wars water waters
    waterways weather week weekly west western wheat white wide wildlife wind wine winner winter winters women wood
    words work workers world writers year yearly years young youth
    """.split()
)

# Endings of common words: a lone capitalised first word with one of these is not taken for a name.
COMMON_ENDINGS = tuple(
    "ly ing tion tions sion sions ment ments ness ity ities ism isms ated ized ised ted sed ded ned ced".split()
)
NAMES_WITH_COMMON_ENDINGS = frozenset(
    """
    Beijing Beverly Billy Boeing Browning Chongqing Clement Emily Fleming Guinness Harding Hemingway Hastings Inverness
    Italy Keating Kelly Kipling Lily Lansing Molly Nanjing Pershing Polly Sally Sibly Sicily Sterling Stirling Thessaly
    Viking Wyoming Xining
    """.split()
)

# Small words that join the parts of one name: "Treaty of Versailles", "Ludwig van Beethoven", "Rio de la Plata".
NAME_CONNECTORS = frozenset(
    "of the de del della der den di da do dos das du la le les el van von y al bin ibn ben".split()
)

MONTHS_AND_DAYS = frozenset(
    """
    January February March April May June July August September October November December Monday Tuesday Wednesday
    Thursday Friday Saturday Sunday
    """.split()
)
