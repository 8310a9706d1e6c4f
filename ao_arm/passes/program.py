"""An exported program with a changed graph: its constants become inputs that it knows, and unused ones go."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputSpec, TensorArgument
from torch.fx import GraphModule, Node

_HELD = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def program_with(program: ExportedProgram, module: GraphModule) -> ExportedProgram:
    """A program with the graph of ``module``, which was made of the program's graph.

    Tensors that are attributes of ``module`` become buffers of the program. Parameters, buffers and constants that the
    graph no longer uses are left out.
    """
    signature = program.graph_signature
    changed = {*signature.buffers_to_mutate.values(), *getattr(signature, "parameters_to_mutate", {}).values()}
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    specs = []
    # By their places: names may have changed when the graph was copied.
    for spec, node in zip(signature.input_specs, placeholders, strict=True):
        if spec.kind in _HELD and not node.users and spec.target not in changed:
            module.graph.erase_node(node)
        else:
            specs.append(replace(spec, arg=replace(spec.arg, name=node.name)))
    held, targets = ({spec.target for spec in of} for of in (specs, signature.input_specs))
    lifted = _lift(module)
    buffers = [InputSpec(InputKind.BUFFER, TensorArgument(name), name, persistent=True) for name in lifted]
    # The order of kinds is fixed: parameters, then buffers.
    first = next((place for place, spec in enumerate(specs) if spec.kind != InputKind.PARAMETER), len(specs))
    specs[first:first] = buffers
    _order(module, [spec.arg.name for spec in specs])
    module.graph.lint()
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=ExportGraphSignature(specs, _output_specs(module, signature)),
        state_dict={**{name: value for name, value in program.state_dict.items() if name in held}, **lifted},
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants={name: value for name, value in program.constants.items() if name in held or name not in targets},
        verifiers=[program.verifier],
    )


def _output_specs(module: GraphModule, signature: ExportGraphSignature) -> list[OutputSpec]:
    outputs = module.graph.output_node().args[0]
    return [
        replace(spec, arg=replace(spec.arg, name=node.name)) if isinstance(node, Node) else spec
        for spec, node in zip(signature.output_specs, outputs, strict=True)  # type: ignore[arg-type]
    ]


def _lift(module: GraphModule) -> dict[str, Tensor]:
    """Makes placeholders of all tensors that are attributes, of one name once."""
    lifted: dict[str, Tensor] = {}
    made: dict[str, Node] = {}
    for node in list(module.graph.nodes):
        value = getattr(module, str(node.target), None) if node.op == "get_attr" else None
        if not isinstance(value, Tensor):
            continue
        name = str(node.target)
        if name not in made:
            place = next(iter(module.graph.nodes))
            with module.graph.inserting_before(place):
                made[name] = module.graph.placeholder(name.lstrip("_"))
            made[name].meta = dict(node.meta)
            lifted[made[name].name] = value
        node.replace_all_uses_with(made[name])
        module.graph.erase_node(node)
    for name in made:
        delattr(module, name)
    return lifted


def _order(module: GraphModule, names: list[str]) -> None:
    """Puts the placeholders into an order."""
    placeholders = {node.name: node for node in module.graph.nodes if node.op == "placeholder"}
    for name in reversed(names):
        next(iter(module.graph.nodes)).prepend(placeholders[name])
