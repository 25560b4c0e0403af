"""HTTP headers of prompts and their answers; what daemons prove to one another is in `adapters.passport`."""

from __future__ import annotations

REQUEST_ID = "X-Request-Id"
"""One prompt keeps its id on its whole way; made by the first node unless the caller gave one."""
DEADLINE = "X-Mesh-Deadline"
"""Between nodes: seconds that are left for this request, a decimal number."""

NODE = "X-Mesh-Node"
"""Public answers: the name of the node that did the work."""
TIER = "X-Mesh-Tier"
"""Tier of the model that answered."""
MODEL = "X-Mesh-Model"
"""Name of the model that answered, where the request may have said `auto`."""
COMPLEXITY = "X-Mesh-Complexity"
"""Where the prompt's complexity chose the tier: `0.310; tier=1`."""
ATTEMPTS = "X-Mesh-Attempts"
"""Candidates that were tried: 1 when the first one answered."""
