"""REALM for Hugging Face: `import realm_hf` registers models and pipeline with transformers.

What a user needs is imported from here, from [`realm_hf.data`] or from [`realm_hf.training`], when it is first used:
torch, transformers, FAISS and datasets take seconds. What transformers gets is in [`realm_hf.registration`].
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from realm_hf.lazy_exports import lazy_exports
from realm_hf.registration import register

if TYPE_CHECKING:
    from realm_hf.generations.embedding import embed_passages
    from realm_hf.generations.projection import fit_projection
    from realm_hf.hub.cards import CardFacts
    from realm_hf.hub.publish import publish
    from realm_hf.index.base import SearchIndex
    from realm_hf.index.faiss_index import build_index
    from realm_hf.index.ranking import RankingIndex
    from realm_hf.legacy.tensorflow_names import from_tensorflow
    from realm_hf.metrics import metric_path
    from realm_hf.models.configuration_realm import RealmConfig
    from realm_hf.models.modeling_embedder import RealmEmbedder, RealmScorer
    from realm_hf.models.modeling_encoder import RealmKnowledgeAugEncoder
    from realm_hf.models.modeling_outputs import (
        RealmEmbedderOutput,
        RealmForOpenQAOutput,
        RealmForPreTrainingOutput,
        RealmReaderOutput,
        RealmScorerOutput,
    )
    from realm_hf.models.modeling_reader import RealmReader
    from realm_hf.models.modeling_realm import RealmForPreTraining
    from realm_hf.models.modeling_realm_qa import RealmForOpenQA
    from realm_hf.models.tokenization_realm import RealmTokenizer
    from realm_hf.qa.answerer import QuestionAnswerer
    from realm_hf.qa.answers import Answer, Evidence
    from realm_hf.qa.evaluation import evaluate_open_qa
    from realm_hf.qa.predictions import write_predictions
    from realm_hf.qa.trec import write_qrels, write_trec_run
    from realm_hf.report import write_answer_report, write_report
    from realm_hf.retriever.bm25 import BM25Source
    from realm_hf.retriever.candidates import CandidateSource, IndexSource, Queries, RankingSource
    from realm_hf.retriever.fused import FusedSource, WeightedSource
    from realm_hf.retriever.mixed import MixedSource
    from realm_hf.retriever.mixture_fit import fit_mixture
    from realm_hf.retriever.retriever import RealmRetriever
    from realm_hf.retriever.text_search import SearchResult

__version__ = version("realm-hf")

register()

__all__ = [
    "Answer",
    "BM25Source",
    "CandidateSource",
    "CardFacts",
    "Evidence",
    "FusedSource",
    "IndexSource",
    "MixedSource",
    "Queries",
    "QuestionAnswerer",
    "RankingIndex",
    "RankingSource",
    "RealmConfig",
    "RealmEmbedder",
    "RealmEmbedderOutput",
    "RealmForOpenQA",
    "RealmForOpenQAOutput",
    "RealmForPreTraining",
    "RealmForPreTrainingOutput",
    "RealmKnowledgeAugEncoder",
    "RealmReader",
    "RealmReaderOutput",
    "RealmRetriever",
    "RealmScorer",
    "RealmScorerOutput",
    "RealmTokenizer",
    "SearchIndex",
    "SearchResult",
    "WeightedSource",
    "build_index",
    "embed_passages",
    "evaluate_open_qa",
    "fit_mixture",
    "fit_projection",
    "from_tensorflow",
    "metric_path",
    "publish",
    "write_answer_report",
    "write_predictions",
    "write_qrels",
    "write_report",
    "write_trec_run",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "generations.embedding": ["embed_passages"],
        "generations.projection": ["fit_projection"],
        "hub.cards": ["CardFacts"],
        "hub.publish": ["publish"],
        "index.base": ["SearchIndex"],
        "index.faiss_index": ["build_index"],
        "index.ranking": ["RankingIndex"],
        "legacy.tensorflow_names": ["from_tensorflow"],
        "metrics": ["metric_path"],
        "models.configuration_realm": ["RealmConfig"],
        "models.modeling_embedder": ["RealmEmbedder", "RealmScorer"],
        "models.modeling_encoder": ["RealmKnowledgeAugEncoder"],
        "models.modeling_outputs": [
            "RealmEmbedderOutput",
            "RealmForOpenQAOutput",
            "RealmForPreTrainingOutput",
            "RealmReaderOutput",
            "RealmScorerOutput",
        ],
        "models.modeling_reader": ["RealmReader"],
        "models.modeling_realm": ["RealmForPreTraining"],
        "models.modeling_realm_qa": ["RealmForOpenQA"],
        "models.tokenization_realm": ["RealmTokenizer"],
        "qa.answerer": ["QuestionAnswerer"],
        "qa.answers": ["Answer", "Evidence"],
        "qa.evaluation": ["evaluate_open_qa"],
        "qa.predictions": ["write_predictions"],
        "qa.trec": ["write_qrels", "write_trec_run"],
        "report": ["write_answer_report", "write_report"],
        "retriever.bm25": ["BM25Source"],
        "retriever.candidates": ["CandidateSource", "IndexSource", "Queries", "RankingSource"],
        "retriever.fused": ["FusedSource", "WeightedSource"],
        "retriever.mixed": ["MixedSource"],
        "retriever.mixture_fit": ["fit_mixture"],
        "retriever.retriever": ["RealmRetriever"],
        "retriever.text_search": ["SearchResult"],
    },
)
