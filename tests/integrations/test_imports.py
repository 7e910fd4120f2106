import json
import subprocess
import sys

import pytest

import moe_search as ms

CODE = """
import json, sys, moe_search as ms
ms.integrations; ms.PermutationSearch
told = {"loaded": [name for name in ("lightning", "transformers") if name in sys.modules]}
for name, extra in (("LightningSearch", "lightning"), ("TransformersSearch", "transformers")):
    sys.modules[extra] = None
    try:
        getattr(ms.integrations, name)
    except ImportError as error:
        told[extra] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told():
    """What a process without the extras says."""
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_no_trainer_is_loaded_before_it_is_asked_for(told):
    assert told["loaded"] == []


@pytest.mark.parametrize("extra", ["lightning", "transformers"])
def test_a_missing_extra_is_named(told, extra):
    assert told[extra].endswith(f'pip install "moe-search[{extra}]"')


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"No moe_search\.integrations attribute Keras"):
        _ = ms.integrations.Keras
