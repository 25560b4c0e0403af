"""The one error tree. A message says what was wrong, where, and what to do next.

`InvalidInput` and its children are what a caller did wrong: they are never retried and become 4xx. The others are
what a machine or a network did. Expected outcomes (a refused ballot, a full queue inside core) are values, not errors.
"""

from __future__ import annotations


class TiermeshError(Exception):
    """Root of all errors that Tiermesh raises on purpose."""

    type = "internal"
    http_status = 500


class InvalidInput(TiermeshError, ValueError):
    """The request, file or option is wrong in itself. `param` names the field, e.g. `messages[0].role`."""

    type = "invalid_request"
    http_status = 400

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidConfig(InvalidInput):
    """A configuration file or option; `param` is the path of the field in it."""

    type = "invalid_config"


class InvalidSpec(InvalidInput):
    """A training spec; `param` is the first wrong field, the text names all."""

    type = "invalid_spec"


class DataUnusable(InvalidInput):
    """Data that was sent can't be trained on, or is not what its digest says."""

    type = "data_unusable"


class ContextTooLong(InvalidInput):
    """The prompt does not fit in the model's context."""

    type = "context_length_exceeded"


class UnknownModel(InvalidInput):
    """No node of the mesh has the model that was asked for."""

    type = "model_not_found"
    http_status = 404


class NotFound(InvalidInput):
    """No such route, node or object."""

    type = "not_found"
    http_status = 404


class BodyTooLarge(InvalidInput):
    """The request is larger than the daemon reads."""

    type = "body_too_large"
    http_status = 413


class WrongContentType(InvalidInput):
    """A body that is not declared as JSON."""

    type = "wrong_content_type"
    http_status = 415


class PoisonedRequest(InvalidInput):
    """The request was running at two deaths of a worker; a third one is not risked for it."""

    type = "poisoned_request"
    http_status = 422


class Unauthenticated(TiermeshError):
    """A token is demanded and the request had none, or a wrong one."""

    type = "unauthenticated"
    http_status = 401


class Forbidden(TiermeshError):
    """The caller may not do this from where it is (open mesh: address, Host or Origin)."""

    type = "forbidden"
    http_status = 403


class WrongCluster(Forbidden):
    """A peer of another cluster."""

    type = "wrong_cluster"


class DuplicateNode(TiermeshError):
    """Another running daemon has this node's id: the state folder was copied, or is in use."""

    type = "duplicate_node"
    http_status = 409


class IncompatibleVersion(TiermeshError):
    """A peer speaks a protocol version outside the range that this one understands."""

    type = "incompatible_version"
    http_status = 426


class Unavailable(TiermeshError):
    """Nobody can do it now; worth trying again after `retry_after_s`."""

    type = "unavailable"
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(Unavailable):
    """No answer came from the node that was asked: it may have heard the question, or not."""


class StateUnwritable(TiermeshError):
    """The state folder can't be written, so this node can't keep a promise it would make."""

    type = "state_unwritable"


class EngineFailed(TiermeshError):
    """An engine died, answered 5xx or broke off; the next candidate may do better."""

    type = "engine_failed"
    http_status = 502


class WorkerDied(EngineFailed):
    """The process that computed the answer died, perhaps of this very request. `death` tells one from another."""

    type = "worker_died"

    def __init__(self, message: str, *, death: object = None) -> None:
        super().__init__(message)
        self.death = death


class DeadlineExceeded(TiermeshError):
    """The request's own time limit passed."""

    type = "deadline_exceeded"
    http_status = 504


class ModelSourceFailed(TiermeshError):
    """A model could not be fetched, verified or converted."""

    type = "model_source_failed"
    http_status = 502


class RunBusy(TiermeshError):
    """Another worker trains in this run's folder."""

    type = "run_busy"
    http_status = 409


class JobRefused(TiermeshError):
    """This node can't take the job, now or ever; the message says why."""

    type = "job_refused"
    http_status = 409


class TooLarge(JobRefused):
    """Never on this node: `needs_bytes` of memory at least, of which the whole machine has `has_bytes`."""

    type = "too_large"

    def __init__(self, message: str, *, needs_bytes: int, has_bytes: int) -> None:
        super().__init__(message)
        self.needs_bytes = needs_bytes
        self.has_bytes = has_bytes


class SlotTaken(JobRefused):
    """Not now: something else trains here, or takes the memory. The same order may be taken later."""

    type = "slot_taken"


class StaleOrder(TiermeshError):
    """An order by somebody who no longer leads, or about an attempt that a later one has replaced."""

    type = "stale_order"
    http_status = 409


class JobExists(InvalidInput):
    """The id of a submission is that of another job."""

    type = "job_exists"
    http_status = 409


class WrongOffset(InvalidInput):
    """A piece of an upload that does not begin where the last one ended; ask how much is there."""

    type = "wrong_offset"
    http_status = 409


class NameTaken(InvalidInput):
    """The name is that of something else that is served already."""

    type = "name_taken"
    http_status = 409


class NotPossibleNow(InvalidInput):
    """What was asked of a job does not go with its state."""

    type = "not_possible_now"
    http_status = 409


class TrainingFailure(TiermeshError):
    """A training run ended without its result. Nothing that it had saved is lost; what helps depends on the class."""

    type = "training_failed"


class OutOfMemory(TrainingFailure):
    """An allocation was refused. `wanted_bytes` is its size where it was said; `device` is `cpu` or a GPU's kind."""

    type = "out_of_memory"

    def __init__(self, message: str, *, wanted_bytes: int | None = None, device: str = "cpu") -> None:
        super().__init__(message)
        self.wanted_bytes = wanted_bytes
        self.device = device


class NonFinite(TrainingFailure):
    """Gradients, loss or weights stayed NaN or infinite longer than the run bears."""

    type = "non_finite"


class Diverged(TrainingFailure):
    """The loss jumped again and again, also after going back to the last good state."""

    type = "diverged"


class BadData(TrainingFailure):
    """The examples can't be trained on: unreadable, empty, or too many bad ones."""

    type = "bad_data"


class BadSpec(TrainingFailure):
    """What was asked for does not go with this model or machine, which only the run could tell."""

    type = "bad_spec"


class ModelUnusable(TrainingFailure):
    """The model's files can't be loaded, or are of a kind that can't be trained."""

    type = "model_unusable"


class CheckpointUnusable(TrainingFailure):
    """A checkpoint belongs to another run, or none of those that are there can be read."""

    type = "checkpoint_unusable"


class DiskFull(TrainingFailure):
    """A file could not be written for want of space. Earlier checkpoints are untouched."""

    type = "disk_full"


class Stalled(TrainingFailure):
    """No step ended within many times the usual time."""

    type = "stalled"


class Overheated(TrainingFailure):
    """The machine stayed too hot although the run had paused."""

    type = "overheated"


class PluginFailed(TrainingFailure):
    """A plugin can't be loaded or raised; the message names it."""

    type = "plugin_failed"


class EnvironmentUnfit(TrainingFailure):
    """A library, driver or permission that the run needs is missing on this machine."""

    type = "environment_unfit"


class Unexplained(TrainingFailure):
    """An error that nobody foresaw. The crash report has the rest."""

    type = "unexplained"
