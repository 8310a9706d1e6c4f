"""What layers of graphs are called, and where that is noted."""

from __future__ import annotations

import re

from torch.fx import Node

#: What a new node takes over of the product that it replaces: where it comes from. (What Inductor notes of a node's
#: arguments is true of that node's arguments only.)
KEPT_META = ("nn_module_stack", "stack_trace")


def name_of(node: Node) -> str:
    """The module that a node comes from, as the tool that made the graph noted it, or else the node's own name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    # Dynamo writes L['self'].layer or L['args'][0].layer where export writes layer.
    return re.sub(r"^L\['\w+'\](\[\d+\])?\.?", "", str(stack[-1][0])) or node.name if stack else node.name
