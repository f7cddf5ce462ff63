"""Flags, variables, file: which wins, and what is refused."""

import pytest

from tgi_server.settings import TABLE, SettingsError, engine_config, load_settings


def problems(arguments=(), environ=None):
    with pytest.raises(SettingsError) as caught:
        load_settings(arguments, environ or {})
    return caught.value.problems


def test_defaults_need_nothing():
    loaded = load_settings([], {})
    assert loaded.settings.port == 3000
    assert loaded.settings.max_concurrent_requests == 128
    assert loaded.sources == {}


def test_a_flag_beats_a_variable_beats_the_file(tmp_path):
    file = tmp_path / "tgi.toml"
    file.write_text('port = 1\nmax-best-of = 7\nmodel_id = "from-file"\n')
    loaded = load_settings(["--port", "3", "--config", str(file)], {"PORT": "2", "MAX_BEST_OF": "5"})
    assert (loaded.settings.port, loaded.settings.max_best_of, loaded.settings.model_id) == (3, 5, "from-file")
    assert loaded.sources["port"] == "--port"
    assert loaded.sources["max_best_of"] == "MAX_BEST_OF"
    assert loaded.sources["model_id"] == str(file)


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["--modle-id", "x"], {}, "unknown option --modle-id; did you mean --model-id?"),
        (["--port", "abc"], {}, "--port: input should be a valid integer"),
        (["--port"], {}, "--port needs a value"),
        (["--port", "99999"], {}, "--port: input should be less than or equal to 65535"),
        (["stray"], {}, "unexpected argument stray"),
        (["--dtype", "int3"], {}, "--dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        (["--kernel", "attention"], {}, "--kernel must look like op=name"),
        (["--num-shard", "0"], {}, "--num-shard: input should be greater than or equal to 1"),
        (["--num-shard", "1", "--sharded", "true"], {}, "`sharded` is true but `num_shard` <= 1"),
        (["--lora-adapters", "a/b"], {}, "--lora-adapters is not supported yet"),
        (["--speculate", "2"], {}, "--speculate is not supported yet"),
        ([], {"JSON_OUTPUT": "yes"}, "JSON_OUTPUT must be true or false"),
        (["--max-input-tokens", "9", "--max-input-length", "9"], {}, "are the same setting"),
        (["--max-input-tokens", "9", "--max-total-tokens", "9"], {}, "`max_input_tokens`(9) must be < "),
        (["--max-total-tokens", "9", "--max-batch-total-tokens", "8"], {}, "Given: 9 and 8"),
        (["--hostname", "example"], {}, "--hostname must be an IP address"),
        (["--config", "/nowhere.toml"], {}, "No such file"),
        (["--max-best-of", "0"], {}, "--max-best-of: input should be greater than 0"),
    ],
)
def test_wrong_settings_are_refused_in_words(arguments, environ, expected):
    assert any(expected in problem for problem in problems(arguments, environ))


def test_all_problems_are_reported_at_once():
    found = problems(["--modle-id", "x", "--port", "abc", "--kernel", "y"], {"JSON_OUTPUT": "on"})
    assert len(found) == 4


def test_unknown_keys_of_the_file_are_refused(tmp_path):
    file = tmp_path / "tgi.toml"
    file.write_text("prot = 1\n")
    assert "did you mean port?" in problems(["--config", str(file)])[0]


def test_hostname_of_a_container_is_no_wish():
    loaded = load_settings([], {"HOSTNAME": "4f1c0e"})
    assert loaded.settings.hostname == "0.0.0.0"
    assert "HOSTNAME=4f1c0e is not an IP address" in loaded.notes[0]
    assert load_settings([], {"HOSTNAME": "127.0.0.1"}).settings.hostname == "127.0.0.1"


def test_legacy_settings_are_noted_not_refused():
    loaded = load_settings(["--validation-workers", "4", "--cuda-graphs", "0", "-p", "80"], {})
    assert loaded.settings.port == 80
    assert len(loaded.notes) == 2


def test_booleans_take_an_optional_value():
    assert load_settings(["--json-output", "--port", "1"], {}).settings.json_output
    assert not load_settings(["--json-output", "false"], {"JSON_OUTPUT": "true"}).settings.json_output
    assert load_settings([], {"TRUST_REMOTE_CODE": "1"}).settings.trust_remote_code


def test_repeated_and_paired_flags():
    loaded = load_settings(["--kernel", "rotary=triton", "--kernel=attention=flash"], {"CORS_ALLOW_ORIGIN": "a,b"})
    assert loaded.settings.kernel == {"rotary": "triton", "attention": "flash"}
    assert loaded.settings.cors_allow_origin == ("a", "b")


def test_the_engine_gets_its_part():
    loaded = load_settings(["--model-id", "m", "--rope-factor", "2", "--kv-cache-dtype", "auto"], {"TGI_DEVICE": "cpu"})
    config = engine_config(loaded.settings)
    assert (config.model_id, config.device, config.rope_scaling, config.kv_cache_dtype) == ("m", "cpu", "linear", None)


def test_secrets_are_not_shown():
    loaded = load_settings(["--api-key", "s3cret"], {})
    assert "s3cret" not in repr(loaded.settings)


def test_every_setting_is_described_and_spelt_once():
    flags = [flag for setting in TABLE for flag in setting.flags]
    variables = [name for setting in TABLE for name in setting.variables]
    assert len(set(flags)) == len(flags)
    assert len(set(variables)) == len(variables)
    assert all(setting.doc for setting in TABLE)
