"""A learner and the examples of one task as an estimator of scikit-learn's: fit adapts, predict answers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.adapted import Adapted
from headstart.errors import ConfigError, DivergenceError, InputError
from headstart.learner import MetaLearner
from headstart.presets import protomaml, r2d2
from headstart.target_scale import TargetScale
from headstart.untrained import moments, untrained

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as missing:
    raise ConfigError(f"the estimators need scikit-learn 1.6 or newer ({missing}): pip install 'headstart[sklearn]'") from missing

Array = NDArray[Any]
ROWS = 1000
"""Examples that are predicted at a time, so that memory does not grow with their number."""
DEFAULT_L2 = 0.01
"""λ of the default regressor, beside features whose mean square length is 1 and a mean squared error."""


class _FewShot(BaseEstimator):  # type: ignore[misc]
    """What both estimators share: the support set that grows, and the learner that adapts to it."""

    learner: MetaLearner | None
    steps: int | None

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Adapts to these examples alone; what was learned before is forgotten.

        Args:
            X: (n, …) examples: an array, a tensor, a data frame or a list.
            y: (n,) labels or targets, (n, k) of a regressor with several.
            sample_weight: (n,) weights of the examples in the mean loss, 0 or more; 0 leaves an example out.

        Raises:
            HeadstartError: the learner cannot adapt to them.
            ValueError: they are no finite numbers, or their shapes do not fit.
        """
        return self._learn(X, y, sample_weight, add=False)

    def _learn(self, X: Any, y: Any, sample_weight: Any, add: bool, named: Any = None) -> Self:
        x, y = self._checked(X, y, reset=not add)
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64)
        if (weight < 0).any():
            raise InputError(f"sample_weight holds {weight.min():g}; weights are 0 or more")
        if add:
            self._check_shape(x)
            if y.shape[1:] != self.support_y_.shape[1:]:
                raise InputError(f"y has shape {y.shape}, but that of the first examples had {self.support_y_.shape}; give one kind")
            x, y = np.concatenate([self.support_x_, x]), _joined(self.support_y_, y)
            weight = np.concatenate([self._weight, weight])
        kept = weight > 0
        if not kept.any():
            raise InputError("sample_weight is zero for every example; give at least one a weight above zero")
        # Nothing of the estimator changes before the learner has adapted.
        state = self._adapted(x[kept], y[kept], weight[kept], y if named is None else _joined(np.asarray(named), y), add)
        for name, value in {"support_x_": x, "support_y_": y, "_weight": weight, **state}.items():
            setattr(self, name, value)
        return self

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Array, Array]:
        """The examples and labels as arrays."""
        raise NotImplementedError  # pragma: no cover

    def _adapted(self, x: Array, y: Array, weight: Array, named: Array, add: bool) -> dict[str, Any]:
        """What the estimator knows after adapting to these examples, by attribute."""
        raise NotImplementedError  # pragma: no cover

    def _adapt(self, learner: MetaLearner, x: Array, y: Array, weight: Array) -> Adapted:
        target = torch.from_numpy(y).to(_like(learner.model).device)
        target = target.to(_like(learner.model).dtype) if target.is_floating_point() else target
        # In half precision weights would be rounded.
        exact = torch.promote_types(_like(learner.model).dtype, torch.float32)
        shares = None if (weight == weight[0]).all() else torch.from_numpy(weight).to(target.device, exact)
        found = learner.adapt(_tensor(x, learner.model), target, _whole(self.steps), shares)
        wrong = [name for name, value in found.w.items() if not bool(value.isfinite().all())]
        if wrong:
            raise DivergenceError(f"adapting made {wrong[0]} NaN or infinite; take fewer steps, a smaller lr, or smaller numbers in X")
        return found

    def _given(self) -> MetaLearner | None:
        if self.learner is not None and not isinstance(self.learner, MetaLearner):
            raise ConfigError(
                f"learner is a {type(self.learner).__name__}; give a MetaLearner, such as hs.protonet(model), or None for the default"
            )
        return self.learner

    def _examples(self, X: Any) -> Tensor:
        """(n, …) what the adapted model takes of new examples."""
        check_is_fitted(self, "adapted_")
        x = validate_data(self, _array(X), reset=False, allow_nd=True)
        self._check_shape(x)
        return _tensor(x, self.adapted_.module)

    def _check_shape(self, x: Array) -> None:
        if x.shape[1:] != self.support_x_.shape[1:]:
            raise InputError(f"examples have shape {x.shape[1:]}, but those of fit had {self.support_x_.shape[1:]}; give the same shape")


class FewShotClassifier(ClassifierMixin, _FewShot):  # type: ignore[misc]
    """A classifier that learns from a few examples of each class by adapting a learner, in the shape of scikit-learn's.

    A support set is learned as one task: there are as many ways as classes. A learner whose head is shaped by the task, such as one
    with ``start=hs.Prototypes()`` or ``hs.SharedVector()``, takes any number; else its model has an output for each.

    Args:
        learner: a :class:`MetaLearner`, such as a meta-trained one, which stays as it is. None for one that needs no meta-training:
            the nearest class mean, of features that are centred and scaled by one number; pictures are flattened. Where features
            have different units, put a ``StandardScaler`` before it.
        steps: inner steps; None for the learner's own. The default learner takes none, and with some goes on from the class means
            by gradient descent.

    Attributes:
        classes_: (C,) the labels, sorted; whole numbers of any type, or strings.
        n_features_in_: features of an example; channels of a picture.
        adapted_: the :class:`Adapted` model.
        support_x_, support_y_: the examples learned from.

    Whole numbers in X become real ones, unless the model has an ``nn.Embedding``.

    Raises:
        ConfigError: the learner is none, or one for real targets.

    Example:
        >>> import headstart as hs
        >>> X = [[0.0, 1.0], [0.2, 0.9], [1.0, 0.0]]
        >>> model = hs.FewShotClassifier().fit(X, ["cat", "cat", "dog"])
        >>> model.predict([[0.9, 0.2]]).tolist()
        ['dog']
        >>> model.partial_fit([[2.0, 2.0]], ["elk"]).predict_proba(X).shape
        (3, 3)
    """

    def __init__(self, learner: MetaLearner | None = None, steps: int | None = None) -> None:
        self.learner, self.steps = learner, steps

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Adds examples to those learned from, and adapts to all; new classes may come at any time.

        Args:
            X: (n, …) more examples.
            y: (n,) their labels.
            classes: (C,) labels that have a column from now on, with probability 0 until there is an example. None for those seen.
            sample_weight: (n,) weights of the examples.

        Raises:
            HeadstartError: the learner cannot adapt to them; what was learned before stays.
        """
        return self._learn(X, y, sample_weight, hasattr(self, "adapted_"), classes)

    def predict_proba(self, X: Any) -> Array:
        """(n, C) probabilities of ``classes_`` for (n, …) examples; 0 for a class without an example."""
        x, seen = self._examples(X), self._seen
        found = np.zeros((len(x), len(self.classes_)))
        if len(seen) == 1:
            found[:, seen] = 1.0
            return found
        # Outputs beyond the classes seen are of no class. What is left of them need not sum to one in every loss.
        shares = _in_parts(self.adapted_.predict_proba, x).numpy()[:, : len(seen)]
        found[:, seen] = shares / shares.sum(1, keepdims=True)
        return found

    def predict(self, X: Any) -> Array:
        """(n,) the likeliest label of each of (n, …) examples."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]  # type: ignore[no-any-return]

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Array, Array]:
        x, y = validate_data(self, _array(X), _array(y), reset=reset, allow_nd=True)
        check_classification_targets(y)
        return x, y

    def _adapted(self, x: Array, y: Array, weight: Array, named: Array, add: bool) -> dict[str, Any]:
        classes = np.unique(_joined(self.classes_, named) if add else named)
        own, target = np.unique(y, return_inverse=True)
        learner = self._given()
        if learner is None:
            learner = protomaml(untrained(x, weight, max(len(own), 2)), steps=0, lr=1.0)
        elif learner.loss.kind == "real":
            raise ConfigError(f"the learner's loss {learner.loss.name} is of real targets; use FewShotRegressor, or loss='cross_entropy'")
        found = self._adapt(learner, x, target.astype(np.int64), weight)
        return {"adapted_": found, "classes_": classes, "_seen": np.searchsorted(classes, own)}


class FewShotRegressor(RegressorMixin, _FewShot):  # type: ignore[misc]
    """A regressor that learns from a few examples by adapting a learner, in the shape of scikit-learn's.

    Predictions are in the unit of y. Inside, targets are standardised: by the learner's ``target_scale``, or, where it has none, by
    the mean and standard deviation of the support targets.

    Args:
        learner: a :class:`MetaLearner` for real targets, whose model has an output for each. None for one that needs no
            meta-training: ridge regression on features that are centred and scaled by one number; pictures are flattened. Where
            features have different units, put a ``StandardScaler`` before it.
        steps: inner steps; None for the learner's own. The default learner is a closed form, and has none.
        standardise: False where the learner has no ``target_scale`` because it was meta-trained on targets as they are.

    Attributes:
        n_features_in_, adapted_, support_x_, support_y_: as of :class:`FewShotClassifier`; ``adapted_`` predicts standardised targets
            where the learner has no ``target_scale``.

    Raises:
        ConfigError: the learner is none, or one for classes.

    Example:
        >>> import headstart as hs
        >>> X, dollars = [[0.0], [1.0], [2.0], [4.0]], [100e3, 150e3, 200e3, 300e3]
        >>> hs.FewShotRegressor().fit(X, dollars).predict([[3.0]]).round(-4).tolist()
        [250000.0]
        >>> hs.FewShotRegressor().fit(X, dollars).partial_fit([[5.0]], [350e3]).predict([[3.0]]).round(-4).tolist()
        [250000.0]
    """

    def __init__(self, learner: MetaLearner | None = None, steps: int | None = None, standardise: bool = True) -> None:
        self.learner, self.steps, self.standardise = learner, steps, standardise

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Adds examples to those learned from, and adapts to all.

        Args:
            X: (n, …) more examples.
            y: (n,) or (n, k) their targets.
            sample_weight: (n,) weights of the examples.

        Raises:
            HeadstartError: the learner cannot adapt to them; what was learned before stays.
        """
        return self._learn(X, y, sample_weight, hasattr(self, "adapted_"))

    def predict(self, X: Any) -> Array:
        """(n,) or (n, k) targets, as y was, for (n, …) examples."""
        x = self._examples(X)
        found = _in_parts(self.adapted_.predict, x)
        if self._scale is not None:
            found = self._scale.back(found.reshape(len(found), -1))
        return found.numpy().reshape(len(found), *self.support_y_.shape[1:])

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Array, Array]:
        x, y = validate_data(self, _array(X), _array(y), reset=reset, allow_nd=True, multi_output=True, y_numeric=True)
        return x, y.astype(np.float64)

    def _adapted(self, x: Array, y: Array, weight: Array, named: Array, add: bool) -> dict[str, Any]:
        learner = self._given()
        own = learner is None or (learner.target_scale is None and self.standardise)
        mean, variance = moments(y.reshape(len(y), -1), weight)
        scale = TargetScale(tuple(mean), tuple(np.sqrt(np.where(variance > 0, variance, 1.0)))) if own else None
        if learner is None:
            # The penalty grows with the examples, so that a weight of two is the example twice.
            learner = r2d2(untrained(x, weight, y[0].size), l2=DEFAULT_L2 * len(x), loss="squared_error")
        elif learner.loss.kind not in ("real", None):
            raise ConfigError(f"the learner's loss {learner.loss.name} is of classes; use FewShotClassifier, or loss='squared_error'")
        if scale is not None:
            y = scale.there(torch.from_numpy(y).reshape(len(y), len(scale.mean)), 1).numpy().reshape(y.shape)
        return {"adapted_": self._adapt(learner, x, y, weight), "_scale": scale}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _array(given: Any) -> Any:
    """What scikit-learn can check: tensors as arrays, the rest as it is."""
    if isinstance(given, list | tuple) and given and isinstance(given[0], Tensor):
        given = torch.stack(list(given))
    if not isinstance(given, Tensor):
        return given
    given = given.detach().cpu()
    return (given.float() if given.dtype == torch.bfloat16 else given).numpy()


def _joined(a: Array, b: Array) -> Array:
    """Labels after labels, or targets after targets; numbers and texts do not mix."""
    if a.dtype.kind != b.dtype.kind and not {a.dtype.kind, b.dtype.kind} <= set("biuf") and not {a.dtype.kind, b.dtype.kind} <= set("UO"):
        raise InputError(f"labels are {a.dtype} first and {b.dtype} then; give numbers only, or texts only")
    return np.concatenate([a, b])


def _like(model: nn.Module) -> Tensor:
    return next(p for p in model.parameters() if p.is_floating_point())


def _tensor(x: Array, model: nn.Module) -> Tensor:
    """Examples in the type and on the device of a model."""
    like = _like(model)
    if x.dtype.kind in "iub" and any(isinstance(m, nn.Embedding | nn.EmbeddingBag) for m in model.modules()):
        return torch.from_numpy(x.astype(np.int64)).to(like.device)
    found = torch.from_numpy(x.astype(np.float64)).to(like.device, like.dtype)
    if not bool(found.isfinite().all()):
        raise InputError(f"X holds numbers up to {np.abs(x).max():g}, too large for the model's {like.dtype}; scale them first")
    return found


def _whole(steps: Any) -> Any:
    """A plain whole number of steps, which numpy's of a grid are not; what is none is left for the learner to refuse."""
    try:
        return steps if steps is None or isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        return steps


def _in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(part).cpu().double() for part in x.split(ROWS)])
