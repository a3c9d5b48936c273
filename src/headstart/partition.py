"""Which parameters of a model adapt to a task (w) and which all tasks share (φ)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from headstart.errors import PartitionError
from headstart.types import Params


class Partition:
    """Splits a model's parameters into the adapted ``w`` and the shared ``φ`` of Ji et al. (2020), section 2.

    Args:
        model: any module.
        adapt: what adapts in the inner loop. ``"head"``: the last layer; ``"body"``: all but the last layer (BOIL);
            ``"all"``: everything (MAML); ``"last:2"``: the last two layers; or a pattern over parameter names such as
            ``"*.bias"`` or ``"*lora_*"``. Several, separated by commas or in a list, add up.

    A layer is a module that holds parameters itself; a normalisation layer counts with the layer before it. "Last" follows
    the order in which the model registers its modules. Parameters with ``requires_grad=False`` are frozen: neither
    adapted nor trained. Tied parameters are one parameter and adapt together.

    Raises:
        PartitionError: the choice matches nothing that can be trained.

    Example:
        >>> from torch import nn
        >>> p = Partition(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), adapt="head")
        >>> p.adapted, p.shared
        (('2.weight', '2.bias'), ('0.weight', '0.bias'))
        >>> p.head, list(p.split()[0])
        (('2.weight', '2.bias'), ['2.weight', '2.bias'])
    """

    def __init__(self, model: nn.Module, adapt: str | Sequence[str] = "head") -> None:
        if not isinstance(model, nn.Module):
            raise PartitionError(f"model={model!r} is a {type(model).__name__}; give a torch.nn.Module")
        if not isinstance(adapt, str) and not (isinstance(adapt, Sequence) and all(isinstance(a, str) for a in adapt)):
            raise PartitionError(f'adapt={adapt!r}; give a text such as "head", or a sequence of them')
        self.model = model
        self.adapt = adapt if isinstance(adapt, str) else ",".join(adapt)
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
        if lazy:
            raise PartitionError(f"{lazy[0]} has no shape yet: run the model once on some examples, and then make the Partition")
        if not trainable:
            raise PartitionError(f"{type(model).__name__} has no parameter with requires_grad=True; unfreeze what should be trained")
        chosen: set[str] = set()
        for choice in filter(None, (c.strip() for c in self.adapt.split(","))):
            chosen |= self._matches(choice, set(trainable))
        if not chosen:
            raise PartitionError(f'adapt={adapt!r} chooses nothing; use "head", "last:2", "body", "all" or a pattern such as "*.bias"')
        self.adapted = tuple(name for name in trainable if name in chosen)
        self.shared = tuple(name for name in trainable if name not in chosen)
        self.frozen = tuple(name for name, p in model.named_parameters() if not p.requires_grad)
        self._frozen_norms: tuple[str, ...] | None = None

    def _matches(self, choice: str, trainable: set[str]) -> set[str]:
        if choice == "all":
            return trainable
        layers = _layers(self.model, trainable)
        if choice == "head":
            return set(layers[-1])
        if choice == "body":
            if len(layers) < 2:
                raise PartitionError('adapt="body" leaves nothing to adapt: the model has a single layer; use adapt="all"')
            return trainable - set(layers[-1])
        if choice.startswith("last:"):
            count = choice.removeprefix("last:")
            if not count.isdigit() or not 1 <= int(count) <= len(layers):
                raise PartitionError(f"adapt={choice!r}: the number must be 1 … {len(layers)}, the layers that hold parameters")
            return {name for layer in layers[-int(count) :] for name in layer}
        aliases = self._aliases()
        found = {aliases[name] for name in aliases if fnmatchcase(name, choice)}
        if not found:
            near = difflib.get_close_matches(choice, list(aliases), n=3, cutoff=0.3) or list(aliases)[:3]
            raise PartitionError(
                f"adapt={choice!r} matches no parameter; the model has, for example, {', '.join(near)}."
                ' Use a pattern such as "*.bias", or "head", "last:2", "body", "all"'
            )
        if not found & trainable:
            raise PartitionError(
                f"adapt={choice!r} matches only frozen parameters (such as {min(found)}); set requires_grad=True on what should adapt"
            )
        return found & trainable

    def _aliases(self) -> dict[str, str]:
        """Every name of every parameter, to its first name: tied parameters have several."""
        first = {id(p): name for name, p in self.model.named_parameters()}
        return {name: first[id(p)] for name, p in self.model.named_parameters(remove_duplicate=False)}

    def split(self) -> tuple[Params, Params]:
        """The model's own parameters as ``(w, φ)``."""
        own = dict(self.model.named_parameters())
        gone = [name for name in (*self.adapted, *self.shared) if name not in own]
        if gone:
            raise PartitionError(
                f"{type(self.model).__name__} has no parameter {gone[0]!r} any more; make the Partition and the learner again"
            )
        return {name: own[name] for name in self.adapted}, {name: own[name] for name in self.shared}

    def trained(self) -> tuple[Params, Params]:
        """:meth:`split`, for training.

        Raises:
            PartitionError: one of them does not ask for a gradient any more.

        Example:
            >>> from torch import nn
            >>> w, phi = Partition(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))).trained()
            >>> list(phi)
            ['0.weight', '0.bias']
        """
        w, phi = self.split()
        late = [name for name, p in {**w, **phi}.items() if not p.requires_grad]
        if late:
            raise PartitionError(f"{late[0]} was frozen after the learner was made; make the Partition and the learner again")
        return w, phi

    def frozen_norms(self) -> tuple[str, ...] | None:
        """The layers of normalisation that are frozen, by name: in evaluation mode while the model trains, now or when last seen so.

        None for a model that was in evaluation mode from the beginning: it goes by its running averages, which is what that mode means.

        Example:
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
            >>> _ = model[1].eval()
            >>> own = Partition(model)
            >>> _ = own.frozen_norms(), model.eval()
            >>> own.frozen_norms(), Partition(model).frozen_norms()  # the first has seen the model train
            (('1',), None)
        """
        if self.model.training:
            norms = ((n, m) for n, m in self.model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase))
            self._frozen_norms = tuple(n for n, m in norms if not m.training)
        return self._frozen_norms

    def seen_training(self, frozen_norms: Sequence[str] = ()) -> None:
        """Notes that the model was trained, in another process or as another copy, and which layers of normalisation were frozen then.

        Example:
            >>> from torch import nn
            >>> own = Partition(nn.Linear(2, 2).eval())
            >>> own.seen_training()
            >>> own.frozen_norms()
            ()
        """
        self._frozen_norms = tuple(frozen_norms)

    @property
    def head(self) -> tuple[str, ...]:
        """The trainable parameters of the last layer, adapted or not."""
        return tuple(_layers(self.model, {*self.adapted, *self.shared})[-1])

    def __repr__(self) -> str:
        return f"Partition({type(self.model).__name__}, adapt={self.adapt!r})"

    def __str__(self) -> str:
        own = dict(self.model.named_parameters())
        role = dict.fromkeys(self.adapted, "adapted (w)") | dict.fromkeys(self.shared, "shared (φ)")
        width = max(len(name) for name in own)
        rows = [f"{'parameter':<{width}}  {'shape':<18} {'size':>12}  role"]
        for name, p in own.items():
            shape = "×".join(map(str, p.shape)) or "scalar"
            rows.append(f"{name:<{width}}  {shape:<18} {p.numel():>12,}  {role.get(name, 'frozen')}")
        totals = [
            f"{sum(own[n].numel() for n in names):,} {label}"
            for names, label in ((self.adapted, "adapted"), (self.shared, "shared"), (self.frozen, "frozen"))
            if names
        ]
        return "\n".join([*rows, "total: " + ", ".join(totals)])


def _layers(model: nn.Module, trainable: set[str]) -> list[list[str]]:
    """Names of the trainable parameters of each layer, in the order of registration."""
    first = {id(p): name for name, p in model.named_parameters()}
    layers: list[list[str]] = []
    for path, module in model.named_modules():
        if ".parametrizations" in f".{path}":
            continue  # counted with the layer whose weight it makes
        own = list(module.parameters(recurse=False))
        if parametrize.is_parametrized(module):
            own += list(module.parametrizations.parameters())
        names = [first[id(p)] for p in own if first[id(p)] in trainable]
        if not names:
            continue
        if layers and "Norm" in type(module).__name__:
            layers[-1] += names
        else:
            layers.append(names)
    return layers
