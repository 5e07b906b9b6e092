"""REALM pre-training for Hugging Face: `import realm_hf` registers the models with transformers' Auto classes."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from .configuration_realm import RealmConfig
from .modeling_outputs import RealmEmbedderOutput, RealmForPreTrainingOutput, RealmScorerOutput
from .modeling_realm import RealmEmbedder, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmScorer
from .tokenization_realm import RealmTokenizer

if TYPE_CHECKING:
    from .retrieval_realm import RealmRetriever

AutoConfig.register("realm", RealmConfig)
AutoTokenizer.register(RealmConfig, tokenizer_class=RealmTokenizer)
AutoModel.register(RealmConfig, RealmEmbedder)
AutoModelForMaskedLM.register(RealmConfig, RealmKnowledgeAugEncoder)
AutoModelForPreTraining.register(RealmConfig, RealmForPreTraining)

__all__ = [
    "RealmConfig",
    "RealmEmbedder",
    "RealmEmbedderOutput",
    "RealmForPreTraining",
    "RealmForPreTrainingOutput",
    "RealmKnowledgeAugEncoder",
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
