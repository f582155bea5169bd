"""The techniques of a run: order, seeds, and errors that name the culprit."""

from typing import Literal

import pytest
import torch
from numeric_toys import steps

import qplug
from qplug import InputError, PluginError, QuantSpec, Site, SiteKind
from qplug.core.types import Event

HOOK = "qplug_make_quantizer"
SITE = Site("a.input", SiteKind.LINEAR_INPUT, "a", "input", (4,))
OTHER = Site("b.input", SiteKind.LINEAR_INPUT, "b", "input", (4,))


def technique(name, answer, *, needs=False, **options):
    """A technique whose range estimation is ``answer(site)``."""

    class Toy(qplug.Technique):
        class Config(qplug.Config):
            use: Literal[name] = name

        gradients = needs

        @qplug.hookimpl(**options)
        def qplug_make_quantizer(self, site):
            return answer(site)

    return Toy


def ask(found, site=SITE):
    return found.first(HOOK, site=site, spec=QuantSpec(4), stats=None)


def test_the_first_step_is_asked_first_and_none_passes_on():
    asked = []

    def note(name, result):
        return technique(f"toy.{name}", lambda site: (asked.append(name), result)[1])

    found = steps(note("a", None), note("b", "B"), note("c", "C"))
    answered, result = ask(found)
    assert (answered.name(), result) == ("toy.b", "B")
    assert asked == ["a", "b"]
    assert [r for _, r in found.each(HOOK, site=SITE, spec=None, stats=None)] == ["B", "C"]


def test_trylast_moves_behind_and_tryfirst_before_everything():
    last = technique("toy.last", lambda site: "last", trylast=True)
    first = technique("toy.first", lambda site: "first", tryfirst=True)
    plain = technique("toy.plain", lambda site: "plain")
    order = [r for _, r in steps(last, plain, first).each(HOOK, site=SITE, spec=None, stats=None)]
    assert order == ["first", "plain", "last"]
    two = technique("toy.two", lambda site: "two", trylast=True)
    order = [r for _, r in steps(last, two, plain).each(HOOK, site=SITE, spec=None, stats=None)]
    assert order == ["plain", "last", "two"]


def test_one_technique_twice_is_two_steps():
    class Level(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.level"] = "toy.level"
            level: int = 0

        @qplug.hookimpl
        def qplug_make_quantizer(self, site):
            return self.config.level or None

    found = steps(Level(Level.Config(level=0)), Level(Level.Config(level=2)), Level(Level.Config(level=3)))
    assert ask(found)[1] == 2


def test_seeds_make_runs_equal_whatever_the_order_and_leave_the_callers_numbers_alone():
    draws = technique("toy.draw", lambda site: torch.rand(3).tolist())
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    one = steps(draws, seed=1)
    first, second = ask(one)[1], ask(one, OTHER)[1]
    assert torch.equal(torch.rand(2), expected)
    again = steps(draws, seed=1)
    torch.rand(7)
    assert (ask(again, OTHER)[1], ask(again)[1]) == (second, first)
    assert first != second
    assert ask(steps(draws, seed=2))[1] != first
    twin = technique("toy.twin", lambda site: torch.rand(3).tolist())
    assert ask(steps(twin, seed=1))[1] != first


def fail(error):
    def raises(site):
        raise error

    return technique("toy.fails", raises)


def test_an_error_names_technique_distribution_version_hook_and_site():
    with pytest.raises(PluginError, match="KeyError: 'missing'") as caught:
        ask(steps(fail(KeyError("missing"))))
    assert caught.value.where == "toy.fails of qplug-toy 1.2.3, qplug_make_quantizer at a.input"
    assert isinstance(caught.value.__cause__, KeyError)


def test_an_error_on_purpose_keeps_its_kind_and_its_own_place():
    with pytest.raises(InputError) as caught:
        ask(steps(fail(InputError("no"))))
    assert caught.value.where.startswith("toy.fails of qplug-toy 1.2.3")
    with pytest.raises(InputError) as caught:
        ask(steps(fail(InputError("no", where="line 3"))))
    assert caught.value.where == "line 3"


def test_the_seed_is_restored_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(PluginError):
        ask(steps(fail(ValueError())))
    assert torch.equal(torch.rand(2), expected)


def test_gradients_are_taken_where_any_step_needs_them():
    plain, needs = technique("toy.a", lambda site: 1), technique("toy.b", lambda site: 1, needs=True)
    assert not steps(plain, plain).need_gradients()
    assert steps(plain, needs).need_gradients()


def test_a_step_that_never_answers_is_named():
    quiet = technique("toy.quiet", lambda site: None)
    found = steps(quiet, technique("toy.busy", lambda site: 1))
    ask(found)
    assert found.idle() == ["toy.quiet had nothing to do: no site, norm or module was left for it"]


def test_broadcast_hooks_are_called_one_technique_at_a_time():
    class Smooth(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.smooth"] = "toy.smooth"

        @qplug.hookimpl
        def qplug_smooth(self, group):
            return group

    found = steps(Smooth, technique("toy.none", lambda site: 1))
    ((who, caller),) = found.each_technique("qplug_smooth")
    assert found.call(who, caller, "qplug_smooth", group="g", stats=None) == "g"
    assert found.implements("qplug_smooth")
    assert not found.implements("qplug_allocate_bits")


def test_a_misspelt_hook_is_refused():
    class Wrong(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.wrong"] = "toy.wrong"

        @qplug.hookimpl
        def qplug_estimate_rang(self, site):
            return None

    with pytest.raises(Exception, match="qplug_estimate_rang"):
        steps(Wrong)


def test_observers_are_told_and_are_no_steps():
    class Watch:
        def __init__(self):
            self.events = []

        @qplug.hookimpl
        def qplug_observe(self, event):
            self.events.append(event)

    watch = Watch()
    found = steps(technique("toy.a", lambda site: 1), observers=[watch])
    found.observe("ranges", "advance", 3, 9, "note")
    assert watch.events == [Event("ranges", "advance", 3, 9, "note")]
    assert ask(found)[1] == 1
