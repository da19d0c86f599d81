"""What `update_pins.py` makes of requirements.txt; that it installs what is newest needs a network."""

import re

import pytest

from lab.publishing import update_pins

TEXT = update_pins.FILE.read_text()
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)", TEXT, re.M))
SMALL = """\
# A heading.

torch==20                  # the library
a-website-with-a-long-name==15.post1  # <2: the website

# What these need.
certifi==10
Zope==30
"""


def test_what_is_installed_already_changes_nothing():
    assert len(PINS) > 50
    assert update_pins.rewrite(TEXT, PINS) == TEXT


def test_direct_requirements_are_asked_for_without_versions_but_with_bounds():
    assert update_pins.wanted(SMALL) == ["torch", "a-website-with-a-long-name<2"]
    asked = update_pins.wanted(TEXT)
    assert "torch" in asked and "jupyter-book<2" in asked
    assert len(asked) == TEXT.partition(update_pins.INDIRECT)[0].count("==")  # each has a reason


def test_new_versions_come_in_and_reasons_stay():
    installed = {
        "torch": "21+cpu",
        "a_website.with-a-long-name": "16",
        "beta": "4",
        "Zope": "31",
        "pip": "9",
    }
    installed |= {"nvidia-cublas": "1", "triton": "2"}
    assert update_pins.rewrite(SMALL, installed) == (
        "# A heading.\n\n"
        "torch==21                  # the library\n"
        "a-website-with-a-long-name==16  # <2: the website\n\n"
        "# What these need.\nbeta==4\nZope==31\n"
    )


def test_a_direct_requirement_that_is_missing_is_said():
    with pytest.raises(KeyError, match="torch"):
        update_pins.rewrite(SMALL, {"certifi": "1.0"})
