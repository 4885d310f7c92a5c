"""docs/wire.md is current, and the check that says so can say otherwise."""

from __future__ import annotations

import pytest

from substrate.wire.control import CONTROL_EVENTS
from substrate.wire.events import ADMIN_EVENTS
from tools import gen_wire


def test_the_page_is_current() -> None:
    assert gen_wire.main(["--check"]) == 0, "run: python -m tools.gen_wire"


def test_every_number_and_kind_has_its_row() -> None:
    page = gen_wire.PAGE.read_text()
    for union in (ADMIN_EVENTS, CONTROL_EVENTS):
        for number, variant in union.by_number.items():
            assert f"| {number} | `{variant.kind}` |" in page


def test_a_changed_table_is_made_anew() -> None:
    page = gen_wire.PAGE.read_text()
    assert gen_wire.render(page.replace("| 3 | `cordon` |", "| 33 | `cordon` |")) == page


def test_a_lost_marker_is_an_error() -> None:
    page = gen_wire.PAGE.read_text()
    for wrong in (page.replace("<!-- end scopes -->", ""), page + "\n<!-- begin x -->\n<!-- end x -->\n"):
        with pytest.raises(ValueError, match="must hold each of"):
            gen_wire.render(wrong)
