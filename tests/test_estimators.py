"""Estimators in the shape of scikit-learn's: what its checks ask, and that they are the learners they are made of."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor, nn

import headstart as hs

X, y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[y]
FEW = np.r_[0:5, 50:55, 100:105]


def shared(outputs: int = 2, lr: float = 0.1, **options: Any) -> hs.MetaLearner:
    return hs.anil(hs.models.mlp(4, outputs), 5, lr, **{"start": hs.SharedVector(), **options})


# -- what scikit-learn asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["FewShotClassifier", "FewShotRegressor"])
def test_the_checks_of_scikit_learn_pass_without_an_exception(kind: str) -> None:
    results = check_estimator(getattr(hs, kind)(), on_skip=None)
    assert {r["status"] for r in results} <= {"passed", "skipped"}
    assert {r["check_name"] for r in results if r["status"] == "passed"} >= {
        "check_sample_weight_equivalence_on_dense_data",
        "check_estimators_pickle",
        "check_fit_idempotent",
    }


def test_scikit_learn_is_not_imported_before_an_estimator_is_used() -> None:
    code = """
import sys, headstart as hs
assert "sklearn" not in sys.modules and {"FewShotClassifier", "FewShotRegressor"} <= set(dir(hs)) and not hasattr(hs, "FewShot")
exec("from headstart import *")
assert "sklearn" not in sys.modules
sys.modules["sklearn"] = sys.modules["sklearn.base"] = None
try:
    hs.FewShotClassifier
except hs.HeadstartError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'headstart[sklearn]'" in said


def test_a_pipeline_is_cross_validated_and_searched_over_steps() -> None:
    pipe = make_pipeline(StandardScaler(), hs.FewShotClassifier())
    assert cross_val_score(pipe, X, NAMES, cv=3).mean() > 0.85
    # The steps of a grid are often numpy's whole numbers.
    search = GridSearchCV(pipe, {"fewshotclassifier__steps": np.arange(0, 60, 20)}, cv=3, error_score="raise").fit(X, NAMES)
    scores = search.cv_results_["mean_test_score"]
    assert scores[2] >= scores[0]
    learner = GridSearchCV(hs.FewShotClassifier(shared()), {"steps": [0, 5]}, cv=3, error_score="raise").fit(X, NAMES)
    assert learner.best_params_ == {"steps": 5}
    assert cross_val_score(hs.FewShotRegressor(), *load_diabetes(return_X_y=True), cv=3).mean() > 0.4


def test_parameters_are_got_set_and_cloned_and_the_learner_stays_as_it_is() -> None:
    learner = shared()
    before = {k: v.clone() for k, v in learner.parameters().items()}
    model = hs.FewShotClassifier(learner, steps=3)
    assert model.get_params() == {"learner": learner, "steps": 3}
    fitted = model.set_params(steps=4).fit(X, y)
    assert all(torch.equal(before[k], v) for k, v in learner.parameters().items())
    again = clone(fitted)
    assert again.steps == 4
    with pytest.raises(NotFittedError):
        again.predict(X)
    with pytest.raises(NotFittedError):
        hs.FewShotRegressor().predict(X)
    assert np.array_equal(again.fit(X, y).predict_proba(X), fitted.predict_proba(X))


@pytest.mark.parametrize("learner", [None, shared(), hs.maml(hs.models.mlp(4, 3), 2, 0.1)], ids=["default", "head", "all"])
def test_a_pickle_answers_the_same_and_learns_on(learner: hs.MetaLearner | None) -> None:
    model = hs.FewShotClassifier(learner).fit(X[FEW], NAMES[FEW])
    back = pickle.loads(pickle.dumps(model))
    assert np.array_equal(back.predict_proba(X), model.predict_proba(X))
    assert np.array_equal(back.partial_fit(X[:60], NAMES[:60]).predict_proba(X), model.partial_fit(X[:60], NAMES[:60]).predict_proba(X))


# -- what they are made of --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("start", [hs.ModelStart(), hs.SharedVector(), hs.Prototypes()])
def test_a_classifier_is_its_learner_adapted(start: hs.Start, steps: int | None) -> None:
    learner = shared(5, start=start)
    model = hs.FewShotClassifier(learner, steps).fit(X[FEW], NAMES[FEW])
    x = torch.from_numpy(X).float()
    adapted = learner.adapt(x[FEW], torch.from_numpy(y[FEW]), steps)
    proba = adapted.predict_proba(x)
    assert model.predict_proba(X).shape == (len(X), 3)
    assert not proba[:, 3:].any()
    assert np.allclose(model.predict_proba(X), proba[:, :3], atol=1e-6)
    assert np.array_equal(model.predict(X), np.unique(NAMES)[adapted.predict(x).numpy()])


def test_the_default_classifier_is_the_nearest_class_mean_in_any_unit() -> None:
    for unit in (1e-9, 1.0, 1e9):
        model = hs.FewShotClassifier().fit(unit * X[FEW], NAMES[FEW])
        assert np.array_equal(model.predict(unit * X), NearestCentroid().fit(X[FEW], NAMES[FEW]).predict(X))
        near = hs.FewShotClassifier(steps=300).fit(unit * X, NAMES)
        assert near.score(unit * X, NAMES) > 0.94


def test_the_default_regressor_is_ridge_regression_on_scaled_features() -> None:
    x, target = load_diabetes(return_X_y=True)
    z = x - x.mean(0)
    z = z / np.sqrt((z**2).sum(1).mean())
    truth = Ridge(alpha=0.01 * len(x)).fit(z, target).predict(z)
    assert np.allclose(hs.FewShotRegressor().fit(1000 * x, target).predict(1000 * x), truth, rtol=1e-9)


def test_weights_count_examples() -> None:
    weight = np.arange(len(FEW)) % 3
    repeated = FEW.repeat(weight)
    for learner in (None, shared(), shared(start=hs.Prototypes())):
        model = hs.FewShotClassifier(learner).fit(X[FEW], NAMES[FEW], weight)
        same = hs.FewShotClassifier(learner).fit(X[repeated], NAMES[repeated])
        assert np.allclose(model.predict_proba(X), same.predict_proba(X), atol=1e-5)
    only = hs.FewShotClassifier().fit(X[FEW], NAMES[FEW], NAMES[FEW] != "setosa")
    assert only.classes_.tolist() == ["setosa", "versicolor", "virginica"]
    assert not only.predict_proba(X)[:, 0].any()


# -- classes that come ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [None, shared()], ids=["default", "shared"])
def test_examples_that_come_in_parts_are_learned_as_if_at_once(learner: hs.MetaLearner | None) -> None:
    parts = hs.FewShotClassifier(learner)
    for part in np.array_split(np.random.default_rng(0).permutation(FEW), 6):
        parts.partial_fit(X[part], NAMES[part])
    order = np.random.default_rng(0).permutation(FEW)
    whole = hs.FewShotClassifier(learner).fit(X[order], NAMES[order])
    assert np.allclose(parts.predict_proba(X), whole.predict_proba(X), atol=1e-6)
    assert np.array_equal(parts.fit(X[FEW], NAMES[FEW]).support_y_, NAMES[FEW]), "fit begins anew"
    line = hs.FewShotRegressor().fit(X[:9], y[:9] + X[:9, 0]).partial_fit(X[50:60], y[50:60] + X[50:60, 0])
    both = np.r_[0:9, 50:60]
    assert np.allclose(line.predict(X), hs.FewShotRegressor().fit(X[both], y[both] + X[both, 0]).predict(X))


def test_a_class_may_be_named_before_it_is_seen_and_seen_without_being_named() -> None:
    model = hs.FewShotClassifier().partial_fit(X[:3], ["b"] * 3, classes=["a", "b", "c"])
    assert model.predict_proba(X[:1]).tolist() == [[0.0, 1.0, 0.0]]
    model.partial_fit(X[70:80], ["zebra"] * 10)
    assert model.classes_.tolist() == ["a", "b", "c", "zebra"]
    proba = model.predict_proba(X[[0, 75]])
    assert not proba[:, [0, 2]].any()
    assert np.allclose(proba.sum(1), 1)
    assert model.predict(X[[0, 75]]).tolist() == ["b", "zebra"]


def test_more_classes_than_outputs_need_a_head_shaped_by_the_task() -> None:
    for start in (hs.SharedVector(), hs.Prototypes()):
        model = hs.FewShotClassifier(shared(2, start=start), steps=20).fit(X, NAMES)
        assert model.predict_proba(X).shape == (150, 3)
        assert model.score(X, NAMES) > 0.6
        assert model.adapted_.logits(torch.zeros(1, 4)).shape == (1, 3)
    with pytest.raises(hs.HeadstartError, match=r"start=hs.SharedVector\(\) or start=hs.Prototypes\(\)"):
        hs.FewShotClassifier(shared(2, start=None)).fit(X, NAMES)


def test_what_was_learned_stays_where_more_cannot_be() -> None:
    model = hs.FewShotClassifier(shared(2, start=None)).fit(X[:100], NAMES[:100])
    before = model.predict_proba(X)
    for more in (NAMES[100:], [0] * 50):
        with pytest.raises(hs.HeadstartError):
            model.partial_fit(X[100:], more)
        assert np.array_equal(model.predict_proba(X), before)


@pytest.mark.parametrize("labels", [NAMES, y + 7, y.astype(float), NAMES.astype(object), torch.from_numpy(y)], ids=lambda v: str(v.dtype))
def test_labels_are_given_back_as_they_came(labels: Any) -> None:
    model = hs.FewShotClassifier().fit(X, labels)
    assert set(model.predict(X)) == set(np.asarray(labels).tolist())
    assert model.score(X, labels) > 0.9


def test_a_model_that_answers_yes_or_no_has_two_columns() -> None:
    learner = hs.anil(hs.models.mlp(4, 1), 20, 0.1, loss="binary_cross_entropy", start=hs.SharedVector())
    model = hs.FewShotClassifier(learner).fit(X[:100], NAMES[:100])
    assert model.predict_proba(X).shape == (150, 2)
    assert model.score(X[:100], NAMES[:100]) > 0.9


# -- what a stranger may bring ----------------------------------------------------------------------------------------------


def pictures() -> tuple[NDArray[Any], NDArray[Any]]:
    digits = load_digits(n_class=4)
    return np.kron(digits.images[:80, None], np.ones((1, 1, 2, 2))), digits.target[:80]


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy, lambda v: v.tolist(), lambda v: list(torch.from_numpy(v))])
def test_pictures_are_arrays_tensors_or_lists(of: Any) -> None:
    x, labels = pictures()
    truth = hs.FewShotClassifier().fit(x, labels).predict(x)
    assert np.array_equal(hs.FewShotClassifier().fit(of(x), labels).predict(of(x)), truth)
    net = hs.protonet(hs.models.conv4(1, ways=2, size=16, filters=4))
    assert hs.FewShotClassifier(net).fit(of(x), labels).predict_proba(of(x)).shape == (80, 4)
    assert hs.FewShotClassifier(net).fit(x.astype(np.uint8), labels).n_features_in_ == 1


def test_whole_numbers_stay_whole_for_a_model_that_looks_them_up() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.table(x).mean(1))  # type: ignore[no-any-return]

    words = [[1, 2, 3], [4, 5, 6]]
    assert hs.FewShotClassifier(hs.protonet(Words())).fit(words, ["good", "bad"]).predict(words).tolist() == ["good", "bad"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_examples_are_taken_in_the_type_of_the_model(dtype: torch.dtype) -> None:
    model = hs.models.projection(4, 3).to(dtype)
    assert hs.FewShotClassifier(hs.protonet(model)).fit(torch.from_numpy(X).to(dtype), NAMES).score(X, NAMES) > 0.85


def test_many_examples_are_predicted_in_parts() -> None:
    model = hs.FewShotClassifier(shared()).fit(X, NAMES)
    many = np.tile(X, (15, 1))
    assert np.allclose(model.predict_proba(many), np.tile(model.predict_proba(X), (15, 1)), atol=1e-6)


def test_dollars_are_learned_and_predicted_in_dollars() -> None:
    dollars = 250e3 + 80e3 * X[:, 0] - 30e3 * X[:, 2]
    default = hs.FewShotRegressor().fit(X, dollars)
    assert default.score(X, dollars) > 0.9
    euros = hs.FewShotRegressor().fit(X, 0.9 * dollars)
    assert np.allclose(euros.predict(X), 0.9 * default.predict(X))
    z = StandardScaler().fit_transform(X)
    net = hs.models.projection(4, 1)
    trained = hs.anil(net, 100, 0.2, loss="squared_error")
    assert hs.FewShotRegressor(trained).fit(z, dollars).score(z, dollars) > 0.9
    own = hs.anil(net, 100, 0.2, loss="squared_error", target_scale=hs.TargetScale((500e3,), (100e3,)))
    x, target = torch.from_numpy(z).float(), torch.from_numpy(dollars).float()
    assert np.allclose(hs.FewShotRegressor(own).fit(z, dollars).predict(z), own.adapt(x, target).predict(x)[:, 0], rtol=1e-6)
    plain = hs.FewShotRegressor(trained, standardise=False).fit(z, z[:, 0])
    assert np.allclose(plain.predict(z), trained.adapt(x, x[:, 0]).predict(x)[:, 0], atol=1e-5)


def test_several_targets_and_a_column_keep_their_shape() -> None:
    both = np.stack([1e6 * X[:, 0], X[:, 1] - 50], 1)
    for learner in (None, hs.anil(hs.models.projection(4, 2), 200, 0.02, loss="squared_error")):
        model = hs.FewShotRegressor(learner).fit(X, both)
        assert model.predict(X).shape == both.shape
        assert model.score(X, both) > 0.4
    alone = np.stack([hs.FewShotRegressor().fit(X, column).predict(X) for column in both.T], 1)
    assert np.allclose(hs.FewShotRegressor().fit(X, both).predict(X), alone)
    with pytest.raises(hs.HeadstartError, match="as many outputs as there are targets"):
        hs.FewShotRegressor(hs.anil(hs.models.mlp(4, 1), 5, 0.1, loss="squared_error")).fit(X, both)
    assert hs.FewShotRegressor().fit(X, both[:, :1]).predict(X).shape == (150, 1)
    with pytest.raises(hs.errors.InputError, match="give one kind"):
        hs.FewShotRegressor().fit(X, both).partial_fit(X, both[:, 0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hs.FewShotClassifier(hs.models.mlp(4, 3)).fit(X, y), "a Sequential; give a MetaLearner"),
        (lambda: hs.FewShotClassifier(steps=2.5).fit(X, y), "steps=2.5"),
        (lambda: hs.FewShotClassifier(hs.anil(hs.models.mlp(4, 3))).fit(X, y), "lr='auto'"),
        (lambda: hs.FewShotClassifier(shared(loss="squared_error")).fit(X, y), "use FewShotRegressor"),
        (lambda: hs.FewShotRegressor(shared()).fit(X, y), "use FewShotClassifier"),
        (lambda: hs.FewShotRegressor(steps=3).fit(X, y), "leave steps out"),
        (lambda: hs.FewShotClassifier().fit(X, y).partial_fit(X[:1], ["four"]), "numbers only, or texts only"),
        (lambda: hs.FewShotClassifier().fit(X, y, -np.ones(150)), "weights are 0 or more"),
        (lambda: hs.FewShotClassifier(shared()).fit(1e300 * X, y), "too large for the model's torch.float32"),
        (lambda: hs.FewShotClassifier(shared(lr=1e38)).fit(X, y), "smaller lr"),
        (lambda: hs.FewShotClassifier().fit(pictures()[0], pictures()[1]).predict(pictures()[0][:, :, :8]), "give the same shape"),
        (lambda: hs.FewShotClassifier(shared()).fit(X[:, :3], y), "cannot run on these examples"),
    ],
)
def test_what_cannot_work_is_said(make: Any, words: str) -> None:
    with pytest.raises(hs.HeadstartError, match=words):
        make()


@pytest.mark.parametrize("given", [(["good", "bad"], [1, 0]), ([], []), (X * np.nan, y), (X, y + 0.5), (X[:9], y)])
def test_what_scikit_learn_refuses_is_a_value_error(given: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        hs.FewShotClassifier().fit(*given)
