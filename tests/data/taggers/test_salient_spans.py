"""Taggers: what the rules find and leave, dates, merging, and the two kinds of tagger with a model in it."""

import re

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification

from realm_hf.data import Span, tagger_from_name
from realm_hf.data.taggers.dates import DateTagger
from realm_hf.data.taggers.names import CombinedTagger, check_tagger_name
from realm_hf.data.taggers.rules import RuleTagger
from realm_hf.data.taggers.spans import merge_spans, spans_to_wordpieces
from realm_hf.data.taggers.with_models import HubTagger, SpacyTagger


def found(tagger, text, label=None):
    return [text[span.start : span.end] for span in tagger([text])[0] if label in (None, span.label)]


@pytest.mark.parametrize(
    ("text", "dates"),
    [
        ("He was born on 5 March 1922 in Rome.", ["5 March 1922"]),
        ("On July 4th, 1776 it began; on December 24 it ended.", ["July 4th, 1776", "December 24"]),
        ("From March 1920 until May he rested.", ["March 1920", "May"]),
        ("He may march in june.", []),
        ("It lasted from 1914 to 1918, or 1914-18.", ["1914", "1918", "1914-18"]),
        ("In the 1990s and the late 19th century.", ["1990s", "late 19th century"]),
        ("Caesar died in 44 BC, Augustus in AD 14.", ["44 BC", "AD 14"]),
        ("Dated 1999-12-31 and 3/4/2005.", ["1999-12-31", "3/4/2005"]),
        ("In summer 1999 and the Twentieth century.", ["summer 1999", "Twentieth century"]),
        ("There were 1914 people, $1914, 1,914 ships, 1914 km and 1914.5 t.", []),
        ("The ISO-2000 norm and room 12345.", []),
        ("On 1st of May, 2001, and in Sept. 2003.", ["1st of May, 2001", "Sept. 2003"]),
    ],
)
def test_dates(text, dates):
    assert found(DateTagger(), text) == dates


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("Managua is the capital of Nicaragua.", ["Managua", "Nicaragua"]),
        ("The treaty of 1957 is the Treaty of Rome.", ["Treaty of Rome"]),
        (
            "In Paris, J. R. R. Tolkien met Ludwig van Beethoven.",
            ["Paris", "J. R. R. Tolkien", "Ludwig van Beethoven"],
        ),
        ("Exports of Germany rose.", ["Germany"]),
        ("Based on this, the U.S. Navy and NATO came.", ["U.S. Navy", "NATO"]),
        ("North Korea borders the People's Republic of China.", ["North Korea", "Republic of China"]),
        ("Taxes rose. I think so.", []),
        ("However, the President of the club left.", []),
        ("Some of the White House staff saw Dr. Smith.", ["White House", "Dr. Smith"]),
        ("US exports fell.", ["US"]),
        ("Italy's coast is long.", ["Italy"]),
        ("Following the war it grew.", []),
        ("ALL OF THIS IS A HEADING", []),
        ("In March it rained.", []),
        ("The Rio de la Plata and the Isle of Man.", ["Rio de la Plata", "Isle of Man"]),
        ("Demographics.", []),
    ],
)
def test_names_by_rule(text, entities):
    assert found(RuleTagger(), text, "ENTITY") == entities


def test_quantities_by_rule():
    text = (
        "It has 25 million people, 120,540 sq km, 5.3% water, $3.2 billion, 12 seats and 7 others on 3 January 1999."
    )
    expected = ["25 million people", "120,540 sq km", "5.3%", "$3.2 billion", "12 seats"]
    assert found(RuleTagger(), text, "QUANTITY") == expected
    assert found(RuleTagger(), text, "DATE") == ["3 January 1999"]


def test_rule_spans_are_ordered_and_disjoint_on_prose(articles):
    for text, spans in zip(articles["text"], RuleTagger()(articles["text"]), strict=True):
        edges = [edge for span in spans for edge in span[:2]]
        assert edges == sorted(edges)
        assert all(text[span.start : span.end].strip() == text[span.start : span.end] != "" for span in spans)


def test_merging_keeps_the_longest_then_the_earlier_source():
    first = [Span(0, 5, "A"), Span(10, 14, "A")]
    second = [Span(3, 9, "B"), Span(10, 14, "B"), Span(14, 16, "B")]
    assert merge_spans(first, second) == [Span(3, 9, "B"), Span(10, 14, "A"), Span(14, 16, "B")]
    assert merge_spans([], []) == []


def test_character_spans_become_the_wordpieces_inside_them():
    offsets = np.array([[0, 3], [4, 7], [7, 9], [9, 10], [11, 15]])
    spans = [Span(4, 9, "A"), Span(5, 9, "B"), Span(10, 11, "C"), Span(8, 15, "D")]
    pieces, labels = spans_to_wordpieces(spans, offsets)
    assert pieces.tolist() == [[1, 3], [2, 3], [3, 5]]
    assert labels == ["A", "B", "D"]
    assert spans_to_wordpieces([], offsets)[0].shape == (0, 2)


def test_combined_taggers_merge_and_their_fingerprint_follows_the_parts():
    class Words:
        def __init__(self, word):
            self.word, self.fingerprint = word, f"words-{word}"

        def __call__(self, texts):
            return [[Span(m.start(), m.end(), "W") for m in re.finditer(self.word, text)] for text in texts]

    text = "on 5 March 1922 in Rome"
    both = CombinedTagger(Words("Rome"), Words("March"), DateTagger())
    assert found(both, text) == ["5 March 1922", "Rome"]
    assert both.fingerprint != CombinedTagger(Words("Rome"), DateTagger()).fingerprint
    assert both.fingerprint == CombinedTagger(Words("Rome"), Words("March"), DateTagger()).fingerprint


@pytest.fixture(scope="module")
def hub_model(tokenizer, tmp_path_factory):
    """A BERT without layers: "france" begins a place, "north" continues it, and nothing else is anything."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=32,
        id2label={0: "O", 1: "B-LOC", 2: "I-LOC"},
        label2id={"O": 0, "B-LOC": 1, "I-LOC": 2},
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1.0)
        for label, word in ((1, "france"), (2, "north")):
            model.bert.embeddings.word_embeddings.weight[tokenizer.convert_tokens_to_ids(word), label] = 1.0
            model.classifier.weight[label, label] = 1.0
        model.classifier.bias[0] = 0.5
    folder = tmp_path_factory.mktemp("hub") / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_hub_tagger_joins_labels_to_character_spans(hub_model):
    tagger = HubTagger(str(hub_model), batch_size=2)
    texts = ["They saw France north of here.", "", "no place", "In France and FRANCE"]
    assert [[texts[i][s.start : s.end] for s in spans] for i, spans in enumerate(tagger(texts))] == [
        ["France north"],
        [],
        [],
        ["France", "FRANCE"],
    ]
    assert tagger(texts)[0][0].label == "LOC"


def test_hub_tagger_reads_sentences_longer_than_the_model(hub_model):
    text = "the river " * 40 + "of France " + "is old " * 20
    assert found(HubTagger(str(hub_model)), text) == ["France"]


def test_hub_tagger_fingerprint_follows_the_weights(hub_model, tokenizer, tmp_path):
    model = BertForTokenClassification.from_pretrained(hub_model)
    model.save_pretrained(tmp_path / "same")
    with torch.no_grad():
        model.classifier.bias[0] += 1
    model.save_pretrained(tmp_path / "other")
    for name in ("same", "other"):
        tokenizer.save_pretrained(tmp_path / name)
    same, other = (HubTagger(str(tmp_path / name)).fingerprint for name in ("same", "other"))
    assert HubTagger(str(hub_model)).fingerprint == same != other


def test_hub_model_without_entity_labels_is_refused(hub_model, tokenizer, tmp_path):
    BertForTokenClassification(
        BertConfig(vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=0, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="say nothing about entities"):
        HubTagger(str(tmp_path))


def test_spacy_tagger_uses_the_pipelines_entities(tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    pipeline.add_pipe("entity_ruler").add_patterns(
        [{"label": "GPE", "pattern": "Paris"}, {"label": "CARDINAL", "pattern": "seven"}]
    )
    pipeline.to_disk(tmp_path / "pipeline")
    tagger = SpacyTagger(str(tmp_path / "pipeline"))
    assert tagger(["In Paris there are seven.", "None"]) == [[Span(3, 8, "GPE")], []]
    pipeline.get_pipe("entity_ruler").add_patterns([{"label": "GPE", "pattern": "Rome"}])
    pipeline.to_disk(tmp_path / "other")
    assert tagger.fingerprint == SpacyTagger(str(tmp_path / "pipeline")).fingerprint
    assert tagger.fingerprint != SpacyTagger(str(tmp_path / "other")).fingerprint


def test_a_spacy_pipeline_that_is_missing_or_finds_nothing_is_explained(tmp_path):
    spacy = pytest.importorskip("spacy")
    with pytest.raises(OSError, match="python -m spacy download en_core_web_none"):
        SpacyTagger("en_core_web_none")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match="none of which finds entities"):
        SpacyTagger(str(tmp_path / "blank"))


def test_missing_spacy_is_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spacy", None)
    with pytest.raises(ImportError, match="pip install spacy"):
        SpacyTagger()


def test_taggers_by_name(hub_model):
    assert isinstance(tagger_from_name("rules"), RuleTagger)
    assert isinstance(tagger_from_name("dates"), DateTagger)
    assert found(tagger_from_name(f"hub:{hub_model}"), "In France in 1999") == ["France", "1999"]
    for name in ("rule", "hub:", "spacy", ""):
        for asked in (tagger_from_name, check_tagger_name):
            with pytest.raises(ValueError, match="unknown tagger"):
                asked(name)
    check_tagger_name("spacy:not_installed")
