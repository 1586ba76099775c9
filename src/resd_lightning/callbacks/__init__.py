"""The lines of Algorithm 1, one file each, and the observers that watch them."""

from resd_lightning.callbacks.cache import CacheSolutions
from resd_lightning.callbacks.concise import ConcisePlaybook
from resd_lightning.callbacks.count_successes import CountSuccesses
from resd_lightning.callbacks.curate import CuratePlaybook
from resd_lightning.callbacks.draw_pictures import DrawPictures
from resd_lightning.callbacks.keep_checkpoints import KeepCheckpoints
from resd_lightning.callbacks.measure_forgetting import MeasureForgetting
from resd_lightning.callbacks.probe_tokens import ProbeTokens
from resd_lightning.callbacks.record_metrics import RecordMetrics
from resd_lightning.callbacks.reflect import ReflectOnFailures
from resd_lightning.callbacks.reflect_wrongly import ReflectWrongly
from resd_lightning.callbacks.sample_teacher import SampleTeacher
from resd_lightning.callbacks.show_progress import ShowProgress
from resd_lightning.callbacks.stop_at_budget import StopAtBudget
from resd_lightning.callbacks.switch_objective import SwitchObjective
from resd_lightning.callbacks.sync_teacher import SyncTeacher
from resd_lightning.callbacks.tag_successes import TagSuccesses
from resd_lightning.callbacks.tensorboard_layout import TensorBoardLayout
from resd_lightning.callbacks.tensorboard_text import TensorBoardText
from resd_lightning.callbacks.transcripts import WriteTranscripts
from resd_lightning.callbacks.validate_first import ValidateFirst
from resd_lightning.callbacks.watch_loss import WatchLoss
from resd_lightning.callbacks.watch_playbook import WatchPlaybook
from resd_lightning.callbacks.write_diagnostics import WriteDiagnostics
from resd_lightning.callbacks.write_predictions import WritePredictions

__all__ = [
    "CacheSolutions",
    "ConcisePlaybook",
    "CountSuccesses",
    "CuratePlaybook",
    "DrawPictures",
    "KeepCheckpoints",
    "MeasureForgetting",
    "ProbeTokens",
    "RecordMetrics",
    "ReflectOnFailures",
    "ReflectWrongly",
    "SampleTeacher",
    "ShowProgress",
    "StopAtBudget",
    "SwitchObjective",
    "SyncTeacher",
    "TagSuccesses",
    "TensorBoardLayout",
    "TensorBoardText",
    "ValidateFirst",
    "WatchLoss",
    "WatchPlaybook",
    "WriteDiagnostics",
    "WritePredictions",
    "WriteTranscripts",
]
