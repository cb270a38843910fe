"""Settings of the commands that start from a run: values and types have the same keys, and a mistake gets one line."""

import pytest
from hydra import compose, initialize_config_dir

from lightning_apps.config.command_settings import SETTINGS, settings_of
from lightning_apps.config.composition import CONF
from lightning_apps.errors import ConfigError


def settings(command, *overrides):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF / "command")):
        return settings_of(command, compose(command, overrides=list(overrides)))


@pytest.mark.parametrize("command", SETTINGS)
def test_every_key_has_a_value(command):
    given = {"run": "x", "input": "x", "to": "x"} if command != "report" else {"run": "x"}
    words = [f"{key}={value}" for key, value in given.items() if key in SETTINGS[command].__dataclass_fields__]
    assert settings(command, *words)["run"] == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evaluate split=tset", "split='tset' (did you mean test?): allowed are validation, test, train"),
        ("evaluate accelerator=tpu", "accelerator='tpu' (did you mean gpu?): allowed are auto, cpu, gpu, mps, or null"),
        (
            "predict input=- format=jsn",
            "format='jsn' (did you mean jsonl?): allowed are auto, jsonl, csv, parquet, text",
        ),
        ("predict input=- batch_size=0", "batch_size=0: must be at least 1"),
        ("generate max_new_tokens=0", "max_new_tokens=0: must be at least 1"),
        ("generate temperature=-1", "temperature=-1.0: must be a number that is not negative"),
        ("generate temperature=nan", "temperature=nan: must be a number that is not negative"),
        ("generate top_p=0", "top_p=0.0: must be above 0 and at most 1"),
        ("explain steps=4", "steps=4: must be an odd number from 3 (ends and middles of stretches)"),
        ("explain steps=1", "steps=1: must be an odd number from 3 (ends and middles of stretches)"),
        ("explain max_documents=0", "max_documents=0: must be at least 1, or null"),
        ("explain faithfulness.unit=letter", "faithfulness.unit='letter': allowed are sentence, word"),
        (
            "explain faithfulness.fractions=[0.5,1.0]",
            "faithfulness.fractions=[0.5, 1.0]: must lie between 0 and 1, both excluded (at fractions[1])",
        ),
        (
            "explain methods=[attention]",
            "methods=['attention'] (did you mean chunk_attention?): allowed are chunk_attention, integrated_gradients, "
            "occlusion (at methods[0])",
        ),
        ("explain page.words=0", "page.words=0: must be at least 1"),
        ("replay num_texts=-1", "num_texts=-1: must be a number that is not negative"),
    ],
)
def test_a_value_out_of_range_gets_one_line(line, message):
    command, *words = line.split()
    with pytest.raises(ConfigError) as caught:
        settings(command, *([] if command == "replay" else ["run=x"]), *words)
    assert str(caught.value) == message
