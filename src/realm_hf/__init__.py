"""REALM for Hugging Face: `import realm_hf` registers models and pipeline with transformers.

What a user needs is imported from here, from [`realm_hf.data`] or from [`realm_hf.training`]. Registration takes the
model classes themselves, so these are imported at once; nearly all of that time is torch's and transformers' own. The
rest, which brings FAISS and datasets, is imported when it is first used.
"""

from typing import TYPE_CHECKING

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
)

from .configuration_realm import RealmConfig
from .lazy_exports import lazy_exports
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
    from .answering import Answer, Evidence, QuestionAnswerer
    from .evaluation import evaluate_open_qa, write_predictions
    from .index.embedding import embed_passages
    from .index.faiss_index import build_index
    from .index.text_search import SearchResult
    from .legacy.tensorflow_names import from_tensorflow
    from .metrics import metric_path
    from .publishing import CardFacts, publish
    from .report import write_answer_report, write_report
    from .retrieval_realm import RealmRetriever

AutoConfig.register("realm", RealmConfig)
AutoTokenizer.register(RealmConfig, tokenizer_class=RealmTokenizer)
AutoModel.register(RealmConfig, RealmEmbedder)
AutoModelForMaskedLM.register(RealmConfig, RealmKnowledgeAugEncoder)
AutoModelForPreTraining.register(RealmConfig, RealmForPreTraining)
AutoModelForQuestionAnswering.register(RealmConfig, RealmForOpenQA)
register_pipeline()

__all__ = [
    "Answer",
    "CardFacts",
    "Evidence",
    "QuestionAnswerer",
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
    "SearchResult",
    "build_index",
    "embed_passages",
    "evaluate_open_qa",
    "from_tensorflow",
    "metric_path",
    "publish",
    "write_answer_report",
    "write_predictions",
    "write_report",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "answering": ["Answer", "Evidence", "QuestionAnswerer"],
        "evaluation": ["evaluate_open_qa", "write_predictions"],
        "index.embedding": ["embed_passages"],
        "index.faiss_index": ["build_index"],
        "index.text_search": ["SearchResult"],
        "legacy.tensorflow_names": ["from_tensorflow"],
        "metrics": ["metric_path"],
        "publishing": ["CardFacts", "publish"],
        "report": ["write_answer_report", "write_report"],
        "retrieval_realm": ["RealmRetriever"],
    },
)
