"""A frozen network rewritten: a BatchNorm, the sum and the ReLU after it become one Norm; nothing in place.

What a pattern does not fit stays as it is. A network that torch.fx cannot trace is not rewritten at all."""
import copy
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from sre2l.kernels.norms import INF, Norm

ADDS = (operator.add, operator.iadd, torch.add)
RELUS = (F.relu, torch.relu, torch.relu_, F.relu_)


def clamp_of(node, modules):
    """(low, high) where the node is a ReLU or ReLU6, else None."""
    module = modules.get(node.target) if node.op == "call_module" else None
    is_function = node.op == "call_function"
    is_method = node.op == "call_method" and node.target == "relu"
    if isinstance(module, nn.ReLU) or is_method or (is_function and node.target in RELUS):
        return 0.0, INF
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one
        return float(module.min_val), float(module.max_val)
    return (0.0, 6.0) if is_function and node.target is F.relu6 else None


def layer_name(node, wanted):
    """The name of the BatchNorm layer in `wanted` that the node runs; None for another node.

    A layer of a class of its own, such as timm's with its activation, is seen as torch's function."""
    if node.op == "call_module":
        return node.target if node.target in wanted else None
    if node.op != "call_function" or node.target is not F.batch_norm or len(node.args) < 2:
        return None
    running_mean = node.args[1]
    if not isinstance(running_mean, fx.Node) or running_mean.op != "get_attr":
        return None
    name, _, buffer = running_mean.target.rpartition(".")
    return name if buffer == "running_mean" and name in wanted else None


def shape_of(node):
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "shape", None)


def added_to(node, add):
    """The other term where `add` is a plain sum of this node and another tensor of its shape, else None."""
    if add.op != "call_function" or add.target not in ADDS or add.kwargs or len(add.args) != 2:
        return None
    other = add.args[1] if add.args[0] is node else add.args[0]
    if not isinstance(other, fx.Node) or other is node or shape_of(other) is None:
        return None
    return other if shape_of(other) == shape_of(node) else None


def only_user(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def absorb(node, facts, modules):
    """Add a sum and a clamp after the layer to its facts -> (their nodes, the sum's other term or None)."""
    pattern = [node]
    user = only_user(node)
    other = None if user is None else added_to(node, user)
    if other is not None:
        pattern.append(user)
        user = only_user(user)
    clamp = None if user is None else clamp_of(user, modules)
    if clamp is not None:
        facts.low, facts.high = clamp
        pattern.append(user)
    return pattern, other


def is_stem_pool(module):
    """The max pool of torchvision's ResNets and DenseNets: 3x3, stride 2, padding 1."""
    if not isinstance(module, nn.MaxPool2d) or module.ceil_mode or module.return_indices:
        return False
    sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
    pairs = [size if isinstance(size, tuple) else (size, size) for size in sizes]
    return pairs == [(3, 3), (2, 2), (1, 1), (1, 1)]


def absorb_pool(last, facts, modules):
    """Where the norm's ReLU feeds such a pool of an even size alone, add it too -> [its node], or []."""
    user = only_user(last)
    shape = shape_of(last)
    if user is None or user.op != "call_module" or facts.low != 0:
        return []
    if not is_stem_pool(modules.get(user.target)):
        return []
    is_image = shape is not None and len(shape) == 4
    facts.pool = is_image and shape[2] % 2 == 0 and shape[3] % 2 == 0
    return [user] if facts.pool else []


def is_thinning(node, modules):
    """Is it a 1x1 stride-2 convolution, as in ResNets' shortcuts? It sees every second row and column."""
    conv = modules.get(node.target) if node.op == "call_module" else None
    wanted = {"kernel_size": (1, 1), "stride": (2, 2), "padding": (0, 0)}
    return isinstance(conv, nn.Conv2d) and all(getattr(conv, key) == value for key, value in wanted.items())


def split_copies(graph, node, facts, modules, thin):
    """Where the result goes two ways, hand out two: their gradients meet inside the backward pass.

    thin: give a 1x1 stride-2 convolution every second row and column alone, and take its stride away."""
    users = list(node.users)
    if len(users) != 2 or any(list(user.all_input_nodes).count(node) != 1 for user in users):
        return
    facts.copies = 2

    # A convolution that thins takes the second copy.
    first_thins, second_thins = (is_thinning(user, modules) for user in users)
    if first_thins and not second_thins:
        users.reverse()
    one_thins = first_thins != second_thins
    runs_once = sum(other.target == users[1].target for other in graph.nodes) == 1  # it has but one stride
    if thin and not facts.pool and one_thins and runs_once:
        facts.thins = True
        modules[users[1].target].stride = (1, 1)
    with graph.inserting_after(node):
        parts = [graph.call_function(operator.getitem, (node, i)) for i in range(2)]
    for part in parts:
        part.meta = dict(node.meta)
    for user, part in zip(users, parts):
        user.replace_input_with(node, part)


def out_of_place(node):
    """The target that gives the same result without writing into its input, or the node's own."""
    if node.op == "call_method" and node.target.endswith("_") and not node.target.startswith("__"):
        return node.target.removesuffix("_")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        if getattr(operator, name, None) is node.target and name.startswith("i"):
            return getattr(operator, name[1:], node.target)  # iadd -> add
        if name.endswith("_") and getattr(torch, name, None) is node.target:
            return getattr(torch, name.removesuffix("_"))
    return node.target


def make_out_of_place(traced):
    """Replace operations in place: they would write into what a Norm has saved.

    NOTE: where the input is read again under its old name, this changes the network. recover/engines.py and
    relabel/teacher_form.py find that by comparing the two."""
    for module in traced.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    for node in traced.graph.nodes:
        node.target = out_of_place(node)
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}


def trace(network, size):
    """-> the network as torch.fx sees it, a copy, nothing in place; a node knows the shape of its result."""
    traced = fx.symbolic_trace(copy.deepcopy(network))
    make_out_of_place(traced)
    parameter = next(network.parameters())
    # Two images: with one, broadcasting over images would not show.
    images = torch.zeros(2, 3, size, size, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        ShapeProp(traced).propagate(images)
    return traced


def insert(graph, name, pattern, inputs):
    """Call the module of this name where the pattern's nodes are, which it replaces -> its node."""
    last = pattern[-1]
    with graph.inserting_after(last):
        fused = graph.call_module(name, inputs)
    last.replace_all_uses_with(fused)
    fused.meta = dict(last.meta)
    for replaced in reversed(pattern):
        graph.erase_node(replaced)
    return fused


def fuse(network, layers, size, on_gpu=False, forward_only=False):
    """-> (the network rewritten, a copy; its Norms in order). Raises anything where torch.fx cannot trace it.

    layers: {BatchNorm layer: (coefficient, weight)}, as NormFacts has them; size: of the images, pixels;
    on_gpu: also what Triton's kernels alone can do; forward_only: nothing that serves a backward pass alone,
    and norms that write over what they read."""
    wanted = {name: layers[layer] for name, layer in network.named_modules() if layer in layers}
    traced = trace(network, size)
    modules = dict(traced.named_modules())
    originals = dict(network.named_modules())
    norms = []
    for node in list(traced.graph.nodes):
        name = layer_name(node, wanted)
        if name is None:
            continue
        norm = Norm(originals[name], *wanted[name], layer_name=name)
        source = node.args[0]

        # A convolution's result that nobody else reads may be written over, where no backward pass needs it.
        made_here = source.op == "call_module" and isinstance(modules[source.target], (nn.Conv2d, nn.Linear))
        norm.facts.in_place = forward_only and made_here and only_user(source) is not None

        # What follows the layer joins its pass: a sum, a clamp, on a GPU the stem's pool.
        pattern, other = absorb(node, norm.facts, modules)
        if on_gpu and other is None:
            pattern += absorb_pool(pattern[-1], norm.facts, modules)

        # One module takes the place of all of them. Its readers share what it computes.
        name = f"norm{len(norms)}"
        traced.add_submodule(name, norm)
        fused = insert(traced.graph, name, pattern, (source,) if other is None else (source, other))
        if not forward_only:
            split_copies(traced.graph, fused, norm.facts, modules, on_gpu)
        norms.append(norm)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced, norms
