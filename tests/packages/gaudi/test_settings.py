import pytest

from tgi_core.errors import ConfigError
from tgi_gaudi.settings import VARIABLES, GaudiSettings, read_settings


def test_nothing_set():
    assert read_settings({}) == GaudiSettings()


def test_every_field_has_a_variable():
    assert {field for field, _ in VARIABLES.values()} == set(GaudiSettings.__dataclass_fields__)


def test_tgi_gaudis_own_example():
    found = read_settings(
        {
            "BATCH_BUCKET_SIZE": "256",
            "PREFILL_BATCH_BUCKET_SIZE": "2",
            "PAD_SEQUENCE_TO_MULTIPLE_OF": "64",
            "ENABLE_HPU_GRAPH": "true",
            "LIMIT_HPU_GRAPH": "True",
            "WARMUP_ENABLED": "false",
            "USE_FLASH_ATTENTION": "1",
            "FLASH_ATTENTION_RECOMPUTE": "true",
            "PT_HPU_LAZY_MODE": "1",
            "QUANT_CONFIG": "",
        }
    )
    assert found == GaudiSettings(
        batch_bucket_size=256,
        prefill_batch_bucket_size=2,
        pad_sequence_to_multiple_of=64,
        limit_hpu_graph=True,
        warmup_enabled=False,
        use_flash_attention=True,
        flash_attention_recompute=True,
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"BATCH_BUCKET_SIZE": "0"}, "BATCH_BUCKET_SIZE='0': it must be a whole number, at least 1"),
        ({"PREFILL_BATCH_BUCKET_SIZE": "four"}, "PREFILL_BATCH_BUCKET_SIZE='four': it must be a whole number"),
        ({"PAD_SEQUENCE_TO_MULTIPLE_OF": "-1"}, "at least 0"),
        ({"LIMIT_HPU_GRAPH": "maybe"}, "LIMIT_HPU_GRAPH='maybe': it must be true or false"),
        ({"QUANT_CONFIG": "/nowhere/quant.json"}, "there is no such file"),
        ({"PT_HPU_LAZY_MODE": "0", "ENABLE_HPU_GRAPH": "true"}, "HPU graphs need lazy mode"),
        ({"FLASH_ATTENTION_RECOMPUTE": "true"}, "set USE_FLASH_ATTENTION too"),
    ],
)
def test_what_cannot_be_is_refused(environment, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(environment)
