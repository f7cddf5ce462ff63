"""Every setting of the server: one model from which flags, environment variables and docs come.

A value comes from a flag, else the environment, else the `--config` file, else its default.  Names of
text-generation-inference keep their unprefixed variables (`MODEL_ID`); newer ones are prefixed (`TGI_DEVICE`).
"""

from __future__ import annotations

import difflib
import ipaddress
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from tgi_core.config import EngineConfig


class SettingsError(Exception):
    """One or more settings are wrong; `problems` names each and says what to do."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def _setting(default: Any, doc: str, *, section: str, **more: Any) -> Any:
    constraints = {key: more.pop(key) for key in ("ge", "gt", "le", "lt") if key in more}
    return Field(default, description=doc, json_schema_extra={"section": section, **more}, **constraints)


def _model(default: Any, doc: str, **more: Any) -> Any:
    return _setting(default, doc, section="Model", **more)


def _engine(default: Any, doc: str, **more: Any) -> Any:
    return _setting(default, doc, section="Engine", **more)


def _limit(default: Any, doc: str, **more: Any) -> Any:
    return _setting(default, doc, section="Limits of a request", **more)


def _http(default: Any, doc: str, **more: Any) -> Any:
    return _setting(default, doc, section="HTTP", **more)


def _process(default: Any, doc: str, **more: Any) -> Any:
    return _setting(default, doc, section="Process", **more)


def _legacy(default: Any, note: str, **more: Any) -> Any:
    """A setting of text-generation-inference that means nothing here; `note` says why."""
    return _setting(default, f"Accepted and ignored: {note}", section="Legacy", legacy=note, **more)


class Settings(BaseModel):
    """What a person may set.  None means: chosen automatically."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model_id: str = _model("", "hub id, folder or .gguf file; default: the embedded model")
    revision: str | None = _model(None, "branch, tag or commit on the hub")
    served_model_name: str | None = _model(None, "name shown to clients instead of the model id", new=True)
    tokenizer_config_path: str | None = _model(None, "file that replaces the model's tokenizer_config.json")
    trust_remote_code: bool = _model(False, "run Python code that comes with the model")
    huggingface_hub_cache: str | None = _model(None, "folder of the hub cache")
    dtype: Literal["float32", "bfloat16", "float16"] | None = _model(None, "number format of the weights")
    quantize: str | None = _model(None, "how weights are kept; int8 and int4 quantise them on loading")
    kv_cache_dtype: str | None = _model(None, "of the KV cache: fp8_e4m3fn or fp8_e5m2 for twice the tokens")
    rope_scaling: Literal["linear", "dynamic"] | None = _model(None, "rotary scaling rule; with --rope-factor")
    rope_factor: float | None = _model(None, "rotary scaling factor", gt=0)
    lora_adapters: str | None = _model(None, "comma list of adapters")

    device: str | None = _engine(None, "cpu, cuda, rocm, gaudi, neuron", new=True)
    kernel: dict[str, str] = _engine({}, "op=name: use this implementation of an op; repeatable", new=True)
    disable_plugin: tuple[str, ...] = _engine((), "name of a plugin not to load; repeatable", new=True)
    disable_custom_kernels: bool = _engine(False, "use the reference implementation of every op")
    deterministic: bool = _engine(False, "the same tokens for a request whatever runs beside it; slower", new=True)
    num_shard: int | None = _engine(None, "devices to divide the model over; on the CPU, processes", ge=1)
    sharded: bool | None = _engine(None, "whether to divide the model; without --num-shard, over all devices")
    speculate: int | None = _engine(None, "tokens to speculate per step", ge=0)
    max_batch_prefill_tokens: int | None = _engine(None, "prompt tokens computed in one step", gt=0)
    max_batch_total_tokens: int | None = _engine(None, "tokens that the KV cache holds", gt=0)
    max_batch_size: int | None = _engine(None, "sequences in one step", gt=0)
    cuda_memory_fraction: float = _engine(1.0, "share of the device's free memory to use", gt=0, le=1)
    prefix_caching: bool | None = _engine(None, "reuse the KV cache of equal prompt beginnings")
    watermark_gamma: float = _engine(0.5, "share of green-list tokens", gt=0, lt=1)
    watermark_delta: float = _engine(2.0, "logit bias of green-list tokens")
    step_deadline: float = _engine(10.0, "seconds of one step after which readiness turns red", gt=0, new=True)
    step_timeout: float = _engine(300.0, "seconds of one step after which the engine is restarted", gt=0, new=True)
    engine_restarts: int = _engine(5, "restarts within ten minutes before giving up", ge=0, new=True)

    max_concurrent_requests: int = _limit(128, "requests at once; more are answered 429", gt=0)
    max_best_of: int = _limit(2, "largest best_of", gt=0)
    max_n: int = _limit(128, "largest n of an OpenAI request", gt=0, new=True)
    max_stop_sequences: int = _limit(4, "stop strings per request", ge=0)
    max_top_n_tokens: int = _limit(5, "largest top_n_tokens and top_logprobs", ge=0)
    max_input_tokens: int | None = _limit(None, "prompt tokens per request", gt=0, aliases=["max_input_length"])
    max_total_tokens: int | None = _limit(None, "prompt plus generated tokens per request", gt=0)
    max_client_batch_size: int = _limit(4, "prompts per completions request", gt=0)
    disable_grammar_support: bool = _limit(False, "refuse grammars")
    enable_prefill_logprobs: bool = _limit(True, "return log-probabilities of the prompt where asked for")

    hostname: str = _http("0.0.0.0", "address to listen on")
    port: int = _http(3000, "port to listen on; 0 picks a free one", ge=0, le=65535, short="p")
    api_key: SecretStr | None = _http(None, "key that clients send as `Authorization: Bearer KEY`")
    cors_allow_origin: tuple[str, ...] = _http((), "allowed origin; repeatable; default: any")
    payload_limit: int = _http(2_000_000, "bytes of a request body", gt=0)
    max_header_bytes: int = _http(32_768, "bytes of request headers", ge=1024, new=True)
    max_header_fields: int = _http(100, "number of request headers", gt=0, new=True)
    header_timeout: float = _http(10.0, "seconds to send the request headers", gt=0, new=True)
    body_timeout: float = _http(10.0, "seconds of grace for a body that comes slower than 1 KiB/s", gt=0, new=True)
    keep_alive_timeout: float = _http(75.0, "seconds that an idle connection stays open", gt=0, new=True)
    client_write_timeout: float = _http(60.0, "seconds that a client may stop reading a stream", gt=0, new=True)
    max_connections: int = _http(4096, "open connections; more are answered 503", gt=0, new=True)

    compute_type: str | None = _process(None, "value of the x-compute-type header; default: 1-PRODUCT")
    json_output: bool = _process(False, "log JSON lines")
    log_level: str = _process("info", "debug, info, warn or error; anything else means info")
    config: Path | None = _process(None, "TOML file with settings", new=True)
    graceful_termination_timeout: float = _process(
        90.0, "seconds that running requests get on SIGTERM", ge=0, short="g", aliases=["shutdown_timeout"]
    )
    drain_delay: float = _process(0.0, "seconds between red readiness and closing the port", ge=0, new=True)
    usage_stats: Literal["on", "off", "no-stack"] = _legacy("off", "nothing is ever reported")

    validation_workers: int | None = _legacy(None, "tokenizing uses a thread pool of its own", gt=0)
    waiting_served_ratio: float | None = _legacy(None, "the scheduler admits requests at every step")
    max_waiting_tokens: int | None = _legacy(None, "the scheduler admits requests at every step")
    cuda_graphs: str | None = _legacy(None, "the backend decides which shapes to capture")
    prometheus_port: int | None = _legacy(None, "/metrics is served on the main port")
    shard_uds_path: str | None = _legacy(None, "sockets live in a private temporary folder")
    master_addr: str | None = _legacy(None, "the ranks of --num-shard meet on this machine by themselves")
    master_port: int | None = _legacy(None, "the ranks of --num-shard meet on this machine by themselves")
    weights_cache_override: str | None = _legacy(None, "use --huggingface-hub-cache")
    otlp_endpoint: str | None = _legacy(None, "tracing is not exported yet")
    otlp_service_name: str | None = _legacy(None, "tracing is not exported yet")
    ngrok: bool = _legacy(False, "run a tunnel beside the server instead")
    ngrok_authtoken: SecretStr | None = _legacy(None, "run a tunnel beside the server instead")
    ngrok_edge: str | None = _legacy(None, "run a tunnel beside the server instead")


@dataclass(frozen=True)
class Setting:
    """How one field of `Settings` is spelt."""

    name: str
    flags: tuple[str, ...]  #: "--model-id", then short and older spellings
    variables: tuple[str, ...]
    default: Any
    doc: str
    section: str
    legacy: str  #: why it is ignored, "" if it is not
    is_bool: bool
    is_list: bool
    choices: tuple[str, ...]

    @property
    def metavar(self) -> str:
        """What `--help` shows for its value."""
        return "|".join(self.choices) if self.choices else self.name.rsplit("_", 1)[-1].upper()


def _describe(name: str, field: FieldInfo) -> Setting:
    extra = field.json_schema_extra
    facts: dict[str, Any] = dict(extra) if isinstance(extra, dict) else {}
    names = (name, *facts.get("aliases", ()))
    flags = tuple("--" + n.replace("_", "-") for n in names)
    short = facts.get("short")
    upper = tuple(n.upper() for n in names)
    options = get_args(field.annotation)
    literal = next((o for o in (field.annotation, *options) if get_origin(o) is Literal), None)
    return Setting(
        name=name,
        flags=(*flags, f"-{short}") if short else flags,
        variables=tuple(f"TGI_{u}" for u in upper) if facts.get("new") else upper,
        default=field.get_default(call_default_factory=True),
        doc=field.description or "",
        section=facts["section"],
        legacy=facts.get("legacy", ""),
        is_bool=field.annotation is bool or bool in options,
        is_list=get_origin(field.annotation) in (tuple, dict),
        choices=get_args(literal) if literal else (),
    )


TABLE: tuple[Setting, ...] = tuple(_describe(name, field) for name, field in Settings.model_fields.items())
BY_NAME = {setting.name: setting for setting in TABLE}
BY_FLAG = {flag: setting for setting in TABLE for flag in setting.flags}


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each that is not a default came from."""

    settings: Settings
    sources: dict[str, str]  #: field -> "--port" | "PORT" | "tgi.toml"
    notes: tuple[str, ...]  #: for the log: what was accepted but ignored or replaced


@dataclass(frozen=True)
class _Given:
    source: str
    value: Any


def parse_flags(arguments: Iterable[str]) -> tuple[dict[str, _Given], list[str]]:
    """Read command-line arguments into values by field, and the problems found on the way."""
    given: dict[str, _Given] = {}
    problems: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, has_value, value = argument.partition("=")
        setting = BY_FLAG.get(flag)
        if setting is None:
            is_option = flag.startswith("-")
            problems.append(_unknown(flag, BY_FLAG, "option") if is_option else f"unexpected argument {argument}")
            if is_option and rest and not has_value and not rest[0].startswith("-"):
                rest.pop(0)
            continue
        if not has_value:
            follows = bool(rest) and not (setting.is_bool and rest[0].startswith("-"))
            if not follows and not setting.is_bool:
                problems.append(f"{flag} needs a value")
                continue
            value = rest.pop(0) if follows else "true"
        _add(given, setting, flag, value, problems)
    return given, problems


def _add(given: dict[str, _Given], setting: Setting, flag: str, value: str, problems: list[str]) -> None:
    before = given.get(setting.name)
    if before is None:
        given[setting.name] = _Given(flag, [value] if setting.is_list else value)
    elif setting.is_list:
        before.value.append(value)
    elif before.source != flag:
        problems.append(f"{before.source} and {flag} are the same setting; give one of them")
    else:
        given[setting.name] = _Given(flag, value)


def _unknown(name: str, known: Iterable[str], kind: str) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.65)
    return f"unknown {kind} {name}" + (f"; did you mean {near[0]}?" if near else "")


def _read_environment(environ: Mapping[str, str]) -> tuple[dict[str, _Given], list[str]]:
    given: dict[str, _Given] = {}
    problems: list[str] = []
    for setting in TABLE:
        names = [name for name in setting.variables if environ.get(name)]
        if len(names) > 1:
            problems.append(f"{' and '.join(names)} are the same setting; set one of them")
        elif names:
            value = environ[names[0]]
            given[setting.name] = _Given(names[0], value.split(",") if setting.is_list else value)
    return given, problems


def _read_file(path: Path) -> tuple[dict[str, _Given], list[str]]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return {}, [f"--config {path}: {error.strerror}"]
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        return {}, [f"--config {path}: not TOML: {error}"]
    given: dict[str, _Given] = {}
    problems: list[str] = []
    for key, value in content.items():
        name = key.replace("-", "_")
        if name in BY_NAME and name != "config":
            given[name] = _Given(str(path), value)
        else:
            problems.append(f"{path}: " + _unknown(key, BY_NAME, "setting"))
    return given, problems


def load_settings(arguments: Iterable[str], environ: Mapping[str, str]) -> Loaded:
    """Merge flags, environment and file; every problem is in the one `SettingsError`."""
    flags, problems = parse_flags(arguments)
    variables, more = _read_environment(environ)
    problems += more
    notes = _replace_hostname(variables)
    merged = {**variables, **flags}
    if "config" in merged:
        content, more = _read_file(Path(merged["config"].value))
        problems += more
        merged = {**content, **merged}
    settings, more = _validate(merged)
    problems += more
    if settings is None or problems:
        raise SettingsError(problems)
    if problems := _conflicts(settings) + _unsupported(settings, merged):
        raise SettingsError(problems)
    notes += [
        f"{given.source} is ignored: {BY_NAME[name].legacy}" for name, given in merged.items() if BY_NAME[name].legacy
    ]
    return Loaded(settings, {name: given.source for name, given in merged.items()}, tuple(notes))


def _replace_hostname(variables: dict[str, _Given]) -> list[str]:
    """Containers set HOSTNAME to their own name, which is no wish of anybody."""
    given = variables.get("hostname")
    if given is None or _is_address(given.value):
        return []
    del variables["hostname"]
    return [f"HOSTNAME={given.value} is not an IP address; listening on 0.0.0.0"]


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _validate(merged: dict[str, _Given]) -> tuple[Settings | None, list[str]]:
    values: dict[str, Any] = {}
    problems: list[str] = []
    for name, given in merged.items():
        setting, value = BY_NAME[name], given.value
        if setting.is_bool and isinstance(value, str):
            if value not in ("true", "false", "1", "0"):
                problems.append(f"{given.source} must be true or false, not {value!r}")
                continue
            value = value in ("true", "1")
        elif name == "kernel" and isinstance(value, list):
            wrong = [pair for pair in value if "=" not in pair]
            problems += [f"{given.source} must look like op=name, not {pair!r}" for pair in wrong]
            value = dict(pair.split("=", 1) for pair in value if "=" in pair)
        values[name] = value
    try:
        return Settings.model_validate(values), problems
    except ValidationError as error:
        return None, problems + [_explain(detail, merged) for detail in error.errors(include_url=False)]


def _explain(detail: Any, merged: dict[str, _Given]) -> str:
    name = str(detail["loc"][0])
    message = detail["msg"].removeprefix("Value error, ")
    shown = "" if name in ("api_key", "ngrok_authtoken") else f" (given: {detail['input']!r})"
    return f"{merged[name].source}: {message[0].lower()}{message[1:]}{shown}"


def _conflicts(s: Settings) -> list[str]:
    """Combinations that cannot work, in text-generation-inference's words where it has some."""
    prompt, total = s.max_input_tokens, s.max_total_tokens
    batch, prefill = s.max_batch_total_tokens, s.max_batch_prefill_tokens
    rules = (
        (prompt and total and prompt >= total, f"`max_input_tokens`({prompt}) must be < `max_total_tokens`({total})"),
        (
            batch and total and total > batch,
            f"`max_total_tokens` must be <= `max_batch_total_tokens`. Given: {total} and {batch}",
        ),
        (
            batch and prefill and prefill > batch,
            f"`max_batch_prefill_tokens` must be <= `max_batch_total_tokens`. Given: {prefill} and {batch}",
        ),
        (
            not _is_address(s.hostname),
            f"--hostname must be an IP address, not {s.hostname!r}; for one machine: 127.0.0.1",
        ),
        (s.rope_factor and not s.rope_scaling and s.rope_factor < 1, "--rope-factor must be >= 1"),
        (s.sharded and s.num_shard == 1, "Invalid argument: `sharded` is true but `num_shard` <= 1"),
        (s.step_timeout < s.step_deadline, "--step-timeout must be >= --step-deadline"),
    )
    return [message for broken, message in rules if broken]


def _unsupported(s: Settings, merged: dict[str, _Given]) -> list[str]:
    """Wishes that this version cannot grant; ignoring them would serve something else than was asked for."""
    rules = (
        ("speculate", s.speculate not in (None, 0), "leave it out"),
        ("lora_adapters", bool(s.lora_adapters), "merge the adapter into the model first"),
        ("ngrok", s.ngrok, BY_NAME["ngrok"].legacy),
    )
    return [f"{merged[name].source} is not supported yet: {hint}" for name, asked, hint in rules if asked]


def engine_config(s: Settings) -> EngineConfig:
    """The part of the settings that the engine process reads."""
    return EngineConfig(
        model_id=s.model_id,
        revision=s.revision,
        tokenizer_config_path=s.tokenizer_config_path,
        device=s.device,
        dtype=s.dtype,
        quantize=s.quantize,
        deterministic=s.deterministic,
        kv_cache_dtype=None if s.kv_cache_dtype in ("auto", "model") else s.kv_cache_dtype,
        num_shard=s.num_shard,
        sharded=s.sharded,
        trust_remote_code=s.trust_remote_code,
        disable_custom_kernels=s.disable_custom_kernels,
        kernels=s.kernel,
        disabled_plugins=s.disable_plugin,
        max_input_tokens=s.max_input_tokens,
        max_total_tokens=s.max_total_tokens,
        max_batch_prefill_tokens=s.max_batch_prefill_tokens,
        max_batch_total_tokens=s.max_batch_total_tokens,
        max_batch_size=s.max_batch_size,
        memory_fraction=s.cuda_memory_fraction,
        prefix_caching=s.prefix_caching,
        rope_scaling=s.rope_scaling or ("linear" if s.rope_factor else None),
        rope_factor=s.rope_factor,
        watermark_gamma=s.watermark_gamma,
        watermark_delta=s.watermark_delta,
        cache_dir=s.huggingface_hub_cache,
    )
