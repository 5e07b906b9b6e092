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

# Never a salient span by themselves at the start of a sentence, and stripped from the front of a longer one.
COMMON_WORDS = frozenset(
    """
    a about above according across actual actually additional additionally adult adults after afterwards again
    against age agriculture air all almost along alongside already also alternative alternatively although
    altogether always among amongst an analysis and animal animals annual annually another any anyone anything
    apart apparently approximately arable area areas around art as aside at available average away back based basic
    because become been before behind being below beneath beside besides best better between beyond big birth birds
    blood boats body books both boys brief briefly broad business but by can capital careful case cases central
    certain certainly chief child children church cities city civil clear clearly climate coal coastal coffee cold
    common commonly companies compared concerning consequently considering constitution contemporary contrary
    conversely cotton could countries country court coverage critics crops crude culture currency current currently
    customs daily data day days death deaths debt defense depending description despite details did different
    difficult direct disease do does domestic down due during each earlier early earth east eastern economic
    economy education eight eighteen eighth eighty either election elections electric electricity electrical eleven
    else elsewhere employment energy enough entire environment equally especially essentially estimates ethnic even
    eventually ever every everyone everything evidence examples except exchange exclusive executive experts exports
    external extra facilities fall families family famous fans farmers farming few fewer fifteen fifth fifty films
    final finally financial firms first fish fishing five flag flights following food for foreign foremost forest
    forests former formerly forty foundations four fourteen fourth free frequent frequently fresh from full fully
    fundamental further furthermore future games gas general generally girls given global god gold good goods
    government governments gradually grain great greater gross ground group groups growth had half has have having
    he head health heavy hence her here high higher highest highly his historians historic historical historically
    history home horses hot hours house households housing how however human humans hundred hundreds i ice ideally
    if immediate immediately important imports in income increased indeed independence independent individual
    individuals industrial industry infant inflation information initial initially inside instead international
    internet interest into iron is islands it items its itself judges judicial just key kids kings labor labour
    lack lakes land landlocked language languages large largely larger largest last lastly late later latter law
    laws leaders leading least legal legislative less lesser let life light like likewise limited linguistic
    literacy little livestock living local located long longer low lower lowest machinery main mainly major
    manufacturing many marine maritime market markets married materials maternal matter may maybe me mean meanwhile
    medical members men mild military million millions mineral minerals mining minor mobile modern money month
    monthly months more moreover mortality most mostly mother motor mountain mountains much multiple music must my
    names narrow nation national nations native natural nature near nearby nearly necessary neither never
    nevertheless new newly next night nine nineteen ninety no nobody none nonetheless nor normal normally north
    northern not notable notably note nothing notwithstanding now nowadays number numbers numerous object obviously
    occasionally of off office officials often oil old older on once one ones only onto open opponents or order
    ordinary original originally other others otherwise our out outside over overall owing own pairs parents
    parliament part partial particular particularly parties parts party past patients people peoples per perhaps
    permanent petroleum physical pipelines place places plans plant plants players plenty political politically
    poor popular population ports possible possibly poverty power prehistoric present presently president previous
    previously primarily primary princes principal prior private pro probable probably problems production products
    professional prominent property proponents public quite radio railways rain rather raw reading real reality
    really recent recently refugees regarding regardless regional regular relations relatively reliable religion
    religious remaining remittances reports research researchers residents respective results revenue revenues rice
    rising river rivers roads roughly round royal rubber rural sales salt same scholars school schools science
    scientific scientists second secondary security see select senior separate services seven seventeen seventh
    seventy several severe shall sharp she shops short shortly should side silver similar similarly simple simply
    since single six sixteen sixth sixty slightly slow small smaller so social society soil soils soldiers some
    somebody someone something sometime sometimes somewhat songs soon sources south southern special species
    specific specifically spoken sports spring stars state states statistics steel still stone stories streets
    strong students subsequent subsequently substantial successive such sugar suitable summer summers supporters
    supposedly surely surface taken tax taxes tea teachers technical telecommunications telephone temperature
    temperatures ten tens terrain territorial textbooks textiles than thanks that the their them themselves then
    there thereafter thereby therefore these they things third thirteen thirty this those though thousand thousands
    three through throughout thus timber time times to today together tomorrow too top total tourism tourists
    towards towns trade traditional traditionally trains transport transportation trees tropical true twelve
    twentieth twenty two types typical typically ultimately under underground unemployment unfortunately unless
    unlike until unusually up upon upper urban us use used usually various vast very via victims villages visitors
    voters voting wages war wars was water waters waterways we weather week weekly well were west western what
    whatever wheat when whenever where whereas wherever whether which whichever while whilst white who whoever
    whole whom whose why wide widely wildlife will wind wine winner winter winters with within without women wood
    words work workers world would writers year yearly years yes yesterday yet you young younger your youth
    """.split()
)

# Endings of common words: a lone capitalised first word with one of these is not taken for a name.
COMMON_ENDINGS = (
    "ly",
    "ing",
    "tion",
    "tions",
    "sion",
    "sions",
    "ment",
    "ments",
    "ness",
    "ity",
    "ities",
    "ance",
    "ism",
)

# Small words that join the parts of one name: "Treaty of Versailles", "Ludwig van Beethoven", "Rio de la Plata".
NAME_CONNECTORS = frozenset(
    "of de del della der den di da do dos das du la le les el van von und y al bin ibn ben the for and".split()
)
