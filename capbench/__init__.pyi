# What `import capbench` offers. capbench/__init__.py reads this list, and type checkers do.
from .captioners.decoding import Captions as Captions
from .captioners.decoding import beam_search as beam_search
from .captioners.decoding import greedy as greedy
from .captioners.decoding import sample as sample
from .data.captions import CaptionDataset as CaptionDataset
from .data.datasets import load_dataset as load_dataset
from .evidence.records import Result as Result
from .evidence.records import load_results as load_results
from .kernels.attention import attention_step as attention_step
from .kernels.chain import viterbi_decode as viterbi_decode
from .kernels.gru import last_hidden as last_hidden
from .kernels.log_prob import target_log_probs as target_log_probs
from .kernels.maxsim import maxsim as maxsim
from .kernels.ranking_loss import ranking_loss as ranking_loss
from .metrics.captioning import CaptionScorer as CaptionScorer
from .metrics.captioning import CaptionScores as CaptionScores
from .metrics.captioning import bleu as bleu
from .metrics.captioning import bleu_statistics as bleu_statistics
from .metrics.captioning import bootstrap_corpus as bootstrap_corpus
from .metrics.captioning import paired_bootstrap_corpus as paired_bootstrap_corpus
from .metrics.diversity import distinct_n as distinct_n
from .metrics.diversity import novelty as novelty
from .metrics.diversity import self_bleu as self_bleu
from .metrics.retrieval import Ranks as Ranks
from .metrics.retrieval import embedding_ranks as embedding_ranks
from .metrics.retrieval import evaluate_protocol as evaluate_protocol
from .metrics.retrieval import match_ranks as match_ranks
from .metrics.retrieval import retrieval_metrics as retrieval_metrics
from .metrics.significance import Interval as Interval
from .metrics.significance import bootstrap as bootstrap
from .metrics.significance import paired_bootstrap as paired_bootstrap
from .metrics.significance import seed_interval as seed_interval
from .runs.loaded import Trained as Trained
from .runs.loaded import load_run as load_run

__version__: str
