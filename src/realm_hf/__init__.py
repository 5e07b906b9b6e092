"""REALM for Hugging Face: `import realm_hf` registers models and pipeline with transformers."""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
)

from .configuration_realm import RealmConfig
from .modeling_outputs import (
    RealmEmbedderOutput,
    RealmForOpenQAOutput,
    RealmForPreTrainingOutput,
    RealmReaderOutput,
    RealmScorerOutput,
)
from .modeling_reader import RealmReader
from .modeling_realm import RealmEmbedder, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmScorer
from .modeling_realm_qa import RealmForOpenQA
from .pipelines import register_pipeline
from .tokenization_realm import RealmTokenizer

if TYPE_CHECKING:
    from .retrieval_realm import RealmRetriever

AutoConfig.register("realm", RealmConfig)
AutoTokenizer.register(RealmConfig, tokenizer_class=RealmTokenizer)
AutoModel.register(RealmConfig, RealmEmbedder)
AutoModelForMaskedLM.register(RealmConfig, RealmKnowledgeAugEncoder)
AutoModelForPreTraining.register(RealmConfig, RealmForPreTraining)
AutoModelForQuestionAnswering.register(RealmConfig, RealmForOpenQA)
register_pipeline()

__all__ = [
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
]


def __getattr__(name: str) -> Any:
    # The retriever brings faiss and datasets, which a script that only loads a model does not wait for.
    if name == "RealmRetriever":
        from .retrieval_realm import RealmRetriever

        return RealmRetriever
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
