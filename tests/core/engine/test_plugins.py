"""What plugins may add to an engine: models, tokenizers, logits processors, observers."""

import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from tgi_core import Engine
from tgi_core.config import EngineConfig
from tgi_core.engine.model_files import find_model, make_tokenizer
from tgi_core.errors import ModelNotFound, RegistrationConflict, TokenizerError
from tgi_core.plugins.manager import load_plugins
from tgi_core.plugins.specs import LogitsProcessorSpec
from tgi_core.request import Request
from tgi_core.sampling.processors.base import LogitsProcessor
from tgi_core.sampling_params import SamplingParams
from tgi_core.tokenizer.tokenizer import load_tokenizer
from tgi_core.weights.source import resolve_model

MODULE = "a_plugin_of_this_test"


class OnlyToken(LogitsProcessor):
    """Leaves one token that the request names."""

    @classmethod
    def wanted(cls, params, context):
        return "only_token" in params.extra

    def __call__(self, logits):
        only = torch.full_like(logits, float("-inf"))
        for row, state in enumerate(self.states):
            only[row, state.params.extra["only_token"]] = 0.0
        return only


def spec(name="only", order=550, **parameters):
    return LogitsProcessorSpec(name=name, target=f"{MODULE}:OnlyToken", order=order, parameters=parameters)


@pytest.fixture
def install(monkeypatch, make_plugin):
    """Makes plugins that every `load_plugins` of this test finds."""

    def put(**plugins):
        entry_points = [make_plugin(name, **hooks) for name, hooks in plugins.items()]
        monkeypatch.setattr("tgi_core.plugins.manager.installed_entry_points", lambda: iter(entry_points))

    return put


def make_engine(model, **options):
    return Engine(EngineConfig(model_id=str(model), device="cpu", **options))


def test_a_processor_of_a_plugin_is_used_by_the_requests_that_name_its_field(install, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, MODULE, SimpleNamespace(OnlyToken=OnlyToken))
    install(forcer={"tgi_register_logits_processors": lambda: [spec(only_token="integer")]})
    engine = make_engine(checkpoint)
    assert engine.info.extra_parameters == {"only_token": "integer"}
    forced = engine.generate([[5, 6]], SamplingParams(max_new_tokens=3, ignore_eos=True, extra={"only_token": 9}))[0]
    assert forced.token_ids == [9, 9, 9]
    assert engine.generate([[5, 6]], SamplingParams(max_new_tokens=3))[0].token_ids != [9, 9, 9]
    assert make_engine(checkpoint, disabled_plugins=("forcer",)).info.extra_parameters == {}


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([spec(order=800)], "same order 800"),
        ([spec(temperature="number")], "temperature, which belongs to the core"),
        ([spec(a="number"), spec("other", 551, a="number")], "request field a"),
        ([spec(a="float")], "float is no JSON type"),
    ],
)
def test_processors_that_clash_stop_the_start(install, checkpoint, specs, message):
    install(clashing={"tgi_register_logits_processors": lambda: specs})
    with pytest.raises(RegistrationConflict, match=message):
        make_engine(checkpoint)


def test_a_plugin_fetches_models_from_elsewhere(install, checkpoint):
    asked = []

    def fetch(model_id, revision, cache_dir):
        asked.append((model_id, revision, cache_dir))
        return checkpoint if model_id.startswith("s3://") else None

    install(bucket={"tgi_resolve_model": fetch})
    engine = make_engine("s3://bucket/model", revision="v1")
    assert engine.info.model_id == "s3://bucket/model"
    assert asked == [("s3://bucket/model", "v1", None)]
    assert engine.generate(["The"], SamplingParams(max_new_tokens=2))[0].token_ids
    assert make_engine(checkpoint).info.model_id == str(checkpoint)


def test_a_plugin_that_fails_over_a_model_is_named_by_its_error(install, tmp_path):
    def fail(model_id):
        raise ConnectionError("no route to bucket")

    install(bucket={"tgi_resolve_model": fail})
    with pytest.raises(ModelNotFound, match="s3://x: a plugin failed to fetch it: ConnectionError: no route"):
        make_engine("s3://x")
    install(bucket={"tgi_resolve_model": lambda: tmp_path / "nothing"})
    with pytest.raises(ModelNotFound, match="where nothing is"):
        make_engine("s3://x")


def test_a_plugin_makes_the_tokenizer(install, checkpoint, tmp_path):
    own = load_tokenizer(resolve_model(str(checkpoint), download_weights=False))
    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    seen = []

    def create(model_path, trust_remote_code):
        seen.append((model_path, trust_remote_code))
        return own

    install(words={"tgi_create_tokenizer": create})
    assert make_engine(bare).tokenizer is own
    assert seen == [(bare, False)]


def test_what_is_no_tokenizer_is_refused(install, checkpoint):
    install(words={"tgi_create_tokenizer": lambda: "a string"})
    plugins = load_plugins()
    files = find_model(plugins, str(checkpoint), download_weights=False)
    with pytest.raises(TokenizerError, match="a str where a Tokenizer was expected"):
        make_tokenizer(plugins, files)

    def fail():
        raise RuntimeError("no vocabulary")

    install(words={"tgi_create_tokenizer": fail})
    with pytest.raises(TokenizerError, match="RuntimeError: no vocabulary"):
        make_tokenizer(load_plugins(), files)


def test_observers_hear_of_start_steps_and_ends(install, checkpoint):
    heard = []
    install(
        watcher={
            "tgi_on_engine_started": lambda info: heard.append(("started", info.model_id)),
            "tgi_on_step_finished": lambda stats: heard.append(("step", stats.kind)),
            "tgi_on_request_finished": lambda request_id, finish_reason, prompt_tokens, generated_tokens: heard.append(
                (request_id, finish_reason, prompt_tokens, generated_tokens)
            ),
        }
    )
    engine = make_engine(checkpoint)
    assert heard == [("started", str(checkpoint))]
    engine.add(Request(id=1, prompt_ids=[5, 6, 7], params=SamplingParams(max_new_tokens=2, ignore_eos=True)))
    engine.add(Request(id=2, prompt_ids=[5], params=SamplingParams(max_new_tokens=9, ignore_eos=True)))
    engine.step()
    engine.step()
    engine.abort(2)
    engine.abort(2)
    engine.abort(77)
    assert heard[1:] == [("step", "prefill"), ("step", "decode"), (1, "length", 3, 2), (2, "abort", 1, 2)]


def test_an_observer_that_fails_harms_nothing_and_is_asked_once(install, checkpoint, caplog):
    calls = []

    def fail(stats):
        calls.append(stats)
        raise ValueError("observer broke")

    install(watcher={"tgi_on_step_finished": fail})
    engine = make_engine(checkpoint)
    assert len(engine.generate([[5, 6]], SamplingParams(max_new_tokens=4, ignore_eos=True))[0].token_ids) == 4
    assert len(calls) == 1
    assert "plugin watcher failed in tgi_on_step_finished" in caplog.text
