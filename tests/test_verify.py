"""The verifier passes, and every mistake that could be made in the mathematics makes it fail."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from headstart.errors import ConfigError
from headstart.hypergradient import HYPERGRADIENTS, recursive
from headstart.inner import SOLVERS, descent, linear_head, sample_path
from headstart.theory import bounds, oracle_counts
from headstart.verifying import bound_checks, engine_checks
from headstart.verifying.checks import CHECKS, verify
from headstart.verifying.problems import proposition_1
from headstart.verifying.zoo import zoo

PAIRS = 60
Mutate = Callable[..., ModuleType]


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Mutate:
    """A module run again from its source, with a snippet replaced."""

    def run(module: ModuleType, old: str, new: str) -> ModuleType:
        source = inspect.getsource(module)
        assert source.count(old) == 1, f"{old!r} occurs {source.count(old)} times in {module.__name__}"
        mutant = ModuleType(module.__name__ + "_mutant")
        monkeypatch.setitem(sys.modules, mutant.__name__, mutant)  # dataclasses look their module up
        for registry in (HYPERGRADIENTS, SOLVERS):  # the mutant enters itself in the place of the original
            monkeypatch.setattr(registry, "_factories", dict(registry._factories))
        exec(compile(source.replace(old, new), f"{module.__file__}, mutated", "exec"), mutant.__dict__)
        return mutant

    return run


# -- it passes ---------------------------------------------------------------------------------------------------------


def test_it_is_deterministic() -> None:
    found = []
    for _ in range(2):
        bound_checks._measured.cache_clear()
        found.append(verify(PAIRS, seed=3, checks=["lipschitz", "variance", "descent"], problems="convex coupled"))
    assert found[0] == found[1]


def test_all_checks_pass(tmp_path: Path) -> None:
    found = verify(pairs=PAIRS)
    assert found.ok, str(found)
    assert {row.check for row in found.rows} == set(CHECKS)
    assert f"all {len(found.rows)} rows pass" in str(found)
    found.save(tmp_path / "verification.json")
    saved = json.loads((tmp_path / "verification.json").read_text())
    assert saved["ok"]
    assert len(saved["rows"]) == len(found.rows)


def test_every_bound_is_nearly_attained_somewhere() -> None:
    """In both geometries; what keeps the mixed blocks from 1 is said in the zoo's docstring."""
    for kind, least in (("strongly convex", 0.99), ("nonconvex", 0.99)):
        rows = verify(PAIRS, checks=["lipschitz"], problems=kind).rows
        for symbol in bound_checks.SYMBOLS.values():
            assert max(row.tightness for row in rows if row.bound == symbol) > least


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lipshitz.*proposition 1, lipschitz"):
        verify(checks=["lipshitz"])
    with pytest.raises(ConfigError, match=r"problems='cubik'.*log-cosh"):
        verify(problems="cubik")
    with pytest.raises(ConfigError, match="pairs=1"):
        verify(pairs=1)


def test_constants_of_the_zoo_hold_along_paths() -> None:
    """μ, L, M, ρ and τ, against derivatives at random points of the region."""
    for case in zoo():
        problem, c = case.problem, case.problem.constants
        for w, phi, task in zip(*problem.sample(1, torch.Generator().manual_seed(0)), strict=True):
            z, n = torch.cat([w, phi]), problem.n_w
            L_S, L_D = (lambda z, f=f: f(z[:n], z[n:], task) for f in (problem.support, problem.query))  # noqa: B023
            hessians = [torch.func.hessian(f)(z) for f in (L_S, L_D)]
            assert max(float(torch.linalg.matrix_norm(h, ord=2)) for h in hessians) <= c.L * (1 + 1e-9)
            assert float(torch.linalg.eigvalsh(hessians[0][:n, :n])[0]) >= c.mu - 1e-9
            assert float(torch.func.grad(L_D)(z).norm()) <= c.M * (1 + 1e-9)
            third = torch.func.jacfwd(torch.func.hessian(L_S))(z)
            along = torch.randn(len(z), dtype=z.dtype, generator=torch.Generator().manual_seed(1))
            change = third @ (along / along.norm())
            assert float(torch.linalg.matrix_norm(change[:n, :n], ord=2)) <= c.rho * (1 + 1e-9) + 1e-12
            assert float(torch.linalg.matrix_norm(change[n:, :n], ord=2)) <= c.tau * (1 + 1e-9) + 1e-12


def test_proposition_1_holds_on_the_zoo() -> None:
    """Autograd through the path, which the bounds are checked with, against dense matrices."""
    for case in zoo():
        w, phi, task = case.problem.sample(1, torch.Generator().manual_seed(0))
        found = case.problem.gradients(w, phi, task, case.steps, case.lr)
        exact = proposition_1(case.problem, w[0], phi[0], task[0], case.steps, case.lr)
        for a, b in zip(found, exact, strict=True):
            torch.testing.assert_close(a[0], b, rtol=1e-11, atol=1e-12)


# -- it fails ----------------------------------------------------------------------------------------------------------

TERMS = {
    "M αρ q^{N−1} Σ r": "c.M * lr * c.rho * q ** (N - 1) * r[j] for",
    "L q^N r_N": "c.L * q**N * r[N]\n",
    "M ατ Σ r q^{N−1−m}": "c.M * lr * c.tau * r[m] * q ** (N - 1 - m) for",
    "M α² Lρ Σ q^{N−2−m} Σ r": "c.M * lr * c.L * lr * c.rho * q ** (N - 2 - m) * r[j] for",
    "α L² S_N r_N": "lr * c.L**2 * geometric_sum(c, lr, N) * r[N]\n",
    "L r_N": "= c.L * r[N]\n",
}
EXPONENTS = {
    "M αρ q^{N−1} Σ r": ("q ** (N - 1)", "q ** (N - 1 + {})"),
    "L q^N r_N": ("q**N", "q ** (N + {})"),
    "M ατ Σ r q^{N−1−m}": ("q ** (N - 1 - m)", "q ** (N - 1 - m + {})"),
    "M α² Lρ Σ q^{N−2−m} Σ r": ("q ** (N - 2 - m)", "q ** (N - 2 - m + {})"),
}


def failures(monkeypatch: pytest.MonkeyPatch, mutant: ModuleType, check: str, problems: str | None = None) -> list[str]:
    monkeypatch.setattr(bound_checks, "bounds", mutant)
    found = verify(PAIRS, checks=[check], problems=problems)
    assert found.ok == (not any("FAIL" in row.verdict for row in found.rows))
    return [row.verdict for row in found.rows if not row.ok]


@pytest.mark.parametrize("block", ["w", "phi"])
@pytest.mark.parametrize("term", TERMS)
def test_a_bound_without_one_of_its_terms_fails(term: str, block: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each term of each of the four bounds alone."""
    old = TERMS[term]
    new = old.replace("= ", f'= (block != "{block}") * ') if old.startswith("= ") else f'(block != "{block}") * {old}'
    found = failures(monkeypatch, mutate(bounds, old, new), "lipschitz")
    assert any("exceeded" in verdict for verdict in found)


@pytest.mark.parametrize("kind", ["strongly convex", "nonconvex"])
@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("block", ["w", "phi"])
@pytest.mark.parametrize("term", EXPONENTS)
def test_another_exponent_of_q_fails(term: str, block: str, by: int, kind: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Towards a smaller bound and towards a larger: q is below 1 in one geometry and above 1 in the other."""
    old, new = EXPONENTS[term]
    mutated = TERMS[term].replace(old, new.format(f'{by} * (block == "{block}")'))
    found = failures(monkeypatch, mutate(bounds, TERMS[term], mutated), "lipschitz", kind)
    looser = (by > 0) == (kind == "nonconvex")
    assert any(("nearly attained" if looser else "exceeded") in verdict for verdict in found)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("for i in range(_whole(m))", "for i in range(_whole(m) + 1)"),
        ("for i in range(_whole(m))", "for i in range(_whole(m) - 1)"),
        ("return contraction(c, lr) ** _whole(m)", "return contraction(c, lr) ** (m + 1)"),
        ("return contraction(c, lr) ** _whole(m)", "return contraction(c, lr) ** (m - 1)"),
        ("return 1 + lr * c.L * geometric_sum(c, lr, m)", "return lr * c.L * geometric_sum(c, lr, m)"),
        ("return 1 + lr * c.L * geometric_sum(c, lr, m)", "return 1.0"),
        ("max(abs(1 - lr * c.mu), abs(1 - lr * c.L))", "abs(1 - lr * c.mu)"),
        ("else 1 + lr * c.L", "else 1.0"),
        ("else 1 + lr * c.L", "else 1 + 2 * lr * c.L"),
    ],
)
def test_a_mistake_in_the_path_fails(old: str, new: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(monkeypatch, mutate(bounds, old, new), "lipschitz")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("contraction(c, lr) ** _whole(steps) * c.M", "contraction(c, lr) ** (steps + 1) * c.M"),
        ("c.M * (1 + lr * c.L * geometric_sum(c, lr, steps))", "c.M * (lr * c.L * geometric_sum(c, lr, steps))"),
        ("c.M * (1 + lr * c.L * geometric_sum(c, lr, steps))", "c.M"),
    ],
)
def test_a_mistake_in_a_variance_fails(old: str, new: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failures(monkeypatch, mutate(bounds, old, new), "variance")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return StepSizes(_inverse(ell.w_w), 0.0)", "return StepSizes(3 * _inverse(ell.w_w), 0.0)"),
        ("return StepSizes(_inverse(ell.w_w), 0.0)", "return StepSizes(_inverse(ell.w_w) / 2, 0.0)"),
        ("both = (ell.w_phi + ell.phi_w) / 2", "both = -(ell.w_phi + ell.phi_w) / 4"),
    ],
)
def test_other_step_sizes_fail(old: str, new: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = "convex coupled" if "both" in old else "without φ"
    assert failures(monkeypatch, mutate(bounds, old, new), "descent", problems)


UPDATE = "u, v, theta, start = _sum(u, Cp), plus(v, Hp), plus(theta, dtheta), plus(start, Pp)"
PRODUCTS = "return _split(problem, problem.support_product(leaves(w_m), p, _others(problem)))"
TRANSPOSED = """w, shared = leaves(w_m), problem.shared.tensors()
    Hp, Cp, Pp = _split(problem, problem.support_product(w, p, _others(problem)))
    for i, name in [(i, n) for i, u in enumerate(shared) for n in w if u.shape == w[n].shape[1:]]:
        each = [cotangents([loss], [shared[i]], create_graph=True) for loss in problem.support_loss(w)]
        Cp[i] = sum(cotangents(g, [w[name]], [p[name][t]], retain_graph=True)[0][t] for t, g in enumerate(each))
    return Hp, Cp, Pp"""
RECURSION = {
    "without C": (UPDATE, "v, theta, start = plus(v, Hp), plus(theta, dtheta), plus(start, Pp)"),
    "without H": (UPDATE, "u, theta, start = _sum(u, Cp), plus(theta, dtheta), plus(start, Pp)"),
    "v after its update": (
        UPDATE,
        "v = plus(v, Hp); Cp = self._products(problem, w_m, {k: -inner.lr * x for k, x in v.items()})[1]; u = _sum(u, Cp)",
    ),
    "C transposed": (PRODUCTS, TRANSPOSED),
    "the path forwards": ("for m in reversed(range(inner.steps)):", "path.reverse()\n        for m in range(inner.steps):"),
}


@pytest.mark.parametrize("mistake", RECURSION)
def test_a_mistake_in_the_recursion_fails(mistake: str, mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_checks, "Recursive", mutate(recursive, *RECURSION[mistake]).Recursive)
    rows = verify(PAIRS, checks=["proposition 1"]).rows
    failed = {(row.problem, row.bound) for row in rows if not row.ok}
    assert failed
    assert all(bound.startswith("recursive") for _, bound in failed)
    if mistake == "C transposed":  # where shapes differ the mutant leaves C alone
        assert {problem for problem, _ in failed} == {"w like φ"}


def test_forgetting_the_regulariser_fails(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = mutate(descent, "[l2 * _square(w[k]) for k in w if l2]", "[0.0 * _square(w[k]) for k in w if l2]")
    monkeypatch.setattr(engine_checks, "GradientDescent", mutant.GradientDescent)
    rows = verify(PAIRS, checks=["proposition 1"]).rows
    assert {row.problem for row in rows if not row.ok} == set(engine_checks.MODELS)


def test_forgetting_the_regulariser_in_sample_space_fails(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_head, "Path", mutate(sample_path, "1 - lr * self.l2", "1.0").Path)
    assert {row.bound for row in verify(PAIRS, checks=["proposition 1"]).rows if not row.ok} == {"sample space"}


def test_a_wrong_count_fails(mutate: Mutate, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = mutate(oracle_counts, "counts = (self.gradients,", "counts = (self.gradients + 1,")
    monkeypatch.setattr("headstart.hypergradient.base.OracleCounts", wrong.OracleCounts)
    assert not verify(PAIRS, checks=["ledger"]).ok


def test_a_path_that_leaves_its_region_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c in zoo() if c.problem.name == "nonconvex quadratic" and c.steps == 3)
    far = replace(case, problem=replace(case.problem, start_w=3 * case.problem.start_w))
    monkeypatch.setattr("headstart.verifying.checks.zoo", lambda: (far,))
    failed = [row.bound for row in verify(PAIRS, checks=["lipschitz"]).rows if not row.ok]
    assert failed == ["path in its region"]
