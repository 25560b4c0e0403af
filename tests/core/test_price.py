"""What a second costs: declared, else energy, else the table of rented devices, else unknown."""

from __future__ import annotations

import pytest

from tiermesh.core.price import Cost, Declared, Price, cost_of, price_of

DECLARED = Declared(usd_per_second=0.0001)
ENERGY = Declared(watts=300.0, usd_per_kwh=0.4)

ROWS = [
    ("declared beats everything", Declared(usd_per_second=0.5, watts=300, usd_per_kwh=0.4), ("A100",), 0.5, "declared"),
    ("nothing is a price too", Declared(usd_per_second=0.0), ("NVIDIA A100-SXM4-80GB",), 0.0, "declared"),
    ("watts and tariff", ENERGY, (), 300 * 0.4 / 3_600_000, "energy"),
    ("energy beats the table", ENERGY, ("Tesla T4",), 300 * 0.4 / 3_600_000, "energy"),
    ("watts alone are no price", Declared(watts=300.0), (), None, None),
    ("a tariff alone is none", Declared(usd_per_kwh=0.4), (), None, None),
    ("watts alone, rented device", Declared(watts=300.0), ("Tesla T4",), 0.000126, "cloud"),
    ("a10g", Declared(), ("NVIDIA A10G",), 0.000306, "cloud"),
    ("t4", Declared(), ("Tesla T4",), 0.000126, "cloud"),
    ("a100", Declared(), ("NVIDIA A100-SXM4-80GB",), 0.000793, "cloud"),
    ("a100 on PCIe", Declared(), ("NVIDIA A100 80GB PCIe",), 0.000793, "cloud"),
    ("an a10 is no a10g", Declared(), ("NVIDIA A10",), None, None),
    ("a t400 is no t4", Declared(), ("NVIDIA T400 4GB",), None, None),
    ("a100x is another card", Declared(), ("NVIDIA A100X",), None, None),
    ("an unknown device", Declared(), ("NVIDIA GeForce RTX 4090",), None, None),
    ("a processor", Declared(), (), None, None),
    ("the first device computes", Declared(), ("NVIDIA GeForce RTX 4090", "Tesla T4"), None, None),
]


@pytest.mark.parametrize(("declared", "gpus", "each", "basis"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_price(declared: Declared, gpus: tuple[str, ...], each: float | None, basis: str | None) -> None:
    price = price_of(declared, gpus, "some processor")
    if each is None:
        assert price is None
    else:
        assert price == Price(pytest.approx(each), gpus[0] if gpus else "some processor", basis)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("price", "times", "cost"),
    [
        (Price(0.5, "gpu", "declared"), (10.0, 8.0, 12.0), Cost(5.0, 4.0, 6.0)),
        (Price(0.0, "gpu", "declared"), (10.0, 8.0, 12.0), Cost(0.0, 0.0, 0.0)),
        (Price(0.5, "gpu", "declared"), (10.0, None, None), Cost(5.0, 5.0, 5.0)),
        (Price(0.5, "gpu", "declared"), (None, None, None), None),
        (None, (10.0, 8.0, 12.0), None),
    ],
)
def test_cost(price: Price | None, times: tuple[float | None, float | None, float | None], cost: Cost | None) -> None:
    assert cost_of(price, *times) == cost
