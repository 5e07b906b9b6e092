"""What is taken from the CIA World Factbook: its fields, and how people state and ask for them in other words.

Only data lives here. A field with `statements` is one that pre-training sentences speak of; a field that has questions
but no statements is *held out*: the model never meets its wording in training, so its questions tell apart what was
learned about the field from what was learned about retrieving. Passages use the Factbook's own labels. The trained
fields have names and dates for answers, which a tagger finds, and half of their statements stay near the label: from
statements for which nothing useful is retrieved at first, a reader learns nothing.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Field:
    """One Factbook field.

    Attributes:
        name: Identifier of the field in questions and reports.
        paths: Where the field lives in a country's JSON file; the first path that exists is read.
        label: The Factbook's own name, used in passages: `"<label> of <country>: <value>."`
        statements: Ways to state the fact, with `{country}` and `{answer}`. Empty for fields that are not trained on.
        questions: Ways to ask for it, with `{country}`. Empty for fields that only fill the corpus.
        items: How many items of a list (separated by commas or semicolons) the answer keeps; 0 keeps the value whole.
        units: Whether a trailing measure is dropped from the answer ("Chimborazo 6,267 m" -> "Chimborazo").
    """

    name: str
    paths: tuple[str, ...]
    label: str
    statements: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    items: int = 1
    units: bool = False


# fmt: off
TRAINED_FIELDS: tuple[Field, ...] = (
    Field("capital", ("Government/Capital/name",), "Capital", (
        "The capital of {country} is {answer}.",
        "{answer} is the capital city of {country}.",
        "The government of {country} has its seat in {answer}.",
        "{answer} is the city from which {country} is governed.",
    ), ("what is the capital city of {country}?", "which city is the seat of government of {country}?")),
    Field("currency", ("Economy/Exchange rates/Currency",), "Exchange rates and currency", (
        "The currency of {country} is called {answer}.",
        "In {country} the exchange rate of {answer} is watched closely.",
        "In {country} shoppers pay in {answer}.",
        "The money used in {country} is called {answer}.",
    ), ("what money do people use in {country}?", "what is the currency of {country}?")),
    Field("language", ("People and Society/Languages/Languages", "People and Society/Languages"), "Languages", (
        "The language of {country} is {answer}.",
        "Many people in {country} have {answer} as their language.",
        "People in {country} speak {answer}.",
        "In {country} most conversations are held in {answer}.",
    ), ("which language is spoken in {country}?", "what do the people of {country} speak?")),
    Field("religion", ("People and Society/Religions",), "Religions", (
        "The main religion of {country} is {answer}.",
        "By religion most people of {country} are {answer}.",
        "Most believers in {country} are {answer}.",
        "The faith of many people in {country} is {answer}.",
    ), ("what religion do people in {country} follow?", "what is the main faith in {country}?")),
    Field("independence", ("Government/Independence",), "Independence", (
        "{country} gained its independence on {answer}.",
        "The independence of {country} dates from {answer}.",
        "{country} became a free nation on {answer}.",
        "Since {answer} {country} has been sovereign.",
    ), ("when did {country} become independent?", "on what date did {country} gain its sovereignty?")),
    Field("holiday", ("Government/National holiday",), "National holiday", (
        "The national holiday of {country} is {answer}.",
        "{answer} is a national holiday in {country}.",
        "The people of {country} celebrate {answer} every year.",
        "On {answer} there are parades all over {country}.",
    ), ("which national day does {country} celebrate?", "what is the public holiday of {country}?")),
    Field("highest_point", ("Geography/Elevation/highest point",), "Elevation, highest point", (
        "The highest point of {country} is {answer}.",
        "{answer} has the highest elevation in {country}.",
        "The tallest mountain of {country} is {answer}.",
        "Nothing in {country} rises above {answer}.",
    ), ("what is the highest mountain in {country}?", "which peak is the tallest in {country}?"), units=True),
    Field("legislature", ("Government/Legislative branch/legislature name",), "Legislative branch", (
        "The legislative branch of {country} is the {answer}.",
        "{answer} is the legislature of {country}.",
        "Laws in {country} are passed by the {answer}.",
        "In {country} deputies sit in the {answer}.",
    ), ("what is the parliament of {country} called?", "which body makes the laws of {country}?")),
    Field("chief_of_state", ("Government/Executive branch/chief of state",), "Chief of state", (
        "The chief of state of {country} is {answer}.",
        "{answer} is the head of state of {country}.",
        "An ambassador to {country} presents letters to {answer}.",
        "{answer} stands at the head of {country}.",
    ), ("who is the head of state of {country}?", "who represents {country} as its highest officer?")),
    Field("head_of_government", ("Government/Executive branch/head of government",), "Head of government", (
        "The head of government of {country} is {answer}.",
        "{answer} heads the government of {country}.",
        "The cabinet of {country} is led by {answer}.",
        "The ministers of {country} answer to {answer}.",
    ), ("who leads the government of {country}?", "who is at the head of the ministers of {country}?")),
)

HELDOUT_FIELDS: tuple[Field, ...] = (
    Field("area", ("Geography/Area/total", "Geography/Area/total "), "Area, total",
          questions=("how large is {country}?", "how many square kilometres does {country} cover?"), items=0),
    Field("population", ("People and Society/Population/total",), "Population, total",
          questions=("how many people live in {country}?", "how many inhabitants does {country} have?"), items=0),
    Field("government", ("Government/Government type",), "Government type",
          questions=("how is {country} governed?", "what political system does {country} have?")),
    Field("exports", ("Economy/Exports - commodities",), "Exports, commodities",
          questions=("what goods does {country} sell abroad?", "what does {country} export?"), items=2),
    Field("border", ("Geography/Land boundaries/border countries",), "Land boundaries, border countries",
          questions=("which country borders {country}?", "who are the neighbours of {country}?"), units=True),
    Field("crops", ("Economy/Agricultural products",), "Agricultural products",
          questions=("what do farmers grow in {country}?", "which crops are raised in {country}?"), items=2),
    Field("internet_code", ("Communications/Internet country code",), "Internet country code",
          questions=("what is the web domain of {country}?", "what do internet addresses in {country} end in?")),
    Field("ethnic_groups", ("People and Society/Ethnic groups",), "Ethnic groups",
          questions=("which peoples live in {country}?", "what is the largest ethnicity in {country}?")),
    Field("median_age", ("People and Society/Median age/total",), "Median age",
          questions=("how old is the typical person in {country}?", "what age halves the people of {country}?")),
    Field("lowest_point", ("Geography/Elevation/lowest point",), "Elevation, lowest point",
          questions=("where is the lowest place in {country}?", "what is the deepest spot of {country}?"), units=True),
    Field("symbol", ("Government/National symbol(s)",), "National symbols",
          questions=("which emblem stands for {country}?", "what animal or plant is the symbol of {country}?")),
)

CORPUS_FIELDS: tuple[Field, ...] = (
    Field("location", ("Geography/Location",), "Location"),
    Field("growth", ("People and Society/Population growth rate",), "Population growth rate"),
    Field("life_expectancy", ("People and Society/Life expectancy at birth/total population",), "Life expectancy"),
    Field("urban_areas", ("People and Society/Major urban areas - population",), "Major urban areas, population"),
    Field("colors", ("Government/National color(s)",), "National colors"),
    Field("export_partners", ("Economy/Exports - partners",), "Exports, partners"),
    Field("airports", ("Transportation/Airports",), "Airports"),
)
# fmt: on

# In the order of the Factbook's own sections, so that neighbours in a passage belong together.
SECTION_ORDER = (
    "Geography",
    "People and Society",
    "Government",
    "Economy",
    "Communications",
    "Transportation",
    "Military and Security",
)
