"""Every error that tgi-core raises on purpose.  `TGIError` is the only base callers need to catch.

A message says what happened and what to do next; it is shown to people as it is.
"""


class TGIError(Exception):
    """Base of all errors that a person can act on."""


class ConfigError(TGIError):
    """A setting is unknown, impossible, or contradicts another one."""


class DeviceUnavailable(TGIError):
    """No installed device can be used, or the wished one cannot."""


class RegistrationConflict(TGIError):
    """Two plugins offer the same thing with the same rank."""


class PluginFailed(TGIError):
    """A plugin's own code failed, or gave what the core cannot use; the message names it."""


class UnsupportedKernel(TGIError):
    """No implementation of an op accepts this model on this device."""


class UnsupportedModel(TGIError):
    """No plugin offers an implementation of this architecture."""


class ModelNotFound(TGIError):
    """The model is neither a local folder or file nor reachable on the hub."""


class WeightsError(TGIError):
    """A checkpoint file is missing, truncated, malformed, or does not fit the model; the message names the file."""


class TokenizerError(TGIError):
    """The tokenizer of a model cannot be loaded or refuses an input."""


class ChatTemplateError(TGIError):
    """The model has no chat template, or it failed on these messages."""


class InvalidRequest(TGIError):
    """A request breaks a limit or contradicts itself; nothing was scheduled."""


class RankLost(TGIError):
    """One of several ranks that hold a model ended; the message names it and says what it said."""


class RanksApart(TGIError):
    """A rank failed where others went on, so that they no longer compute the same step."""


class RequestFailed(TGIError):
    """The engine gave up on one request; others are unaffected."""
