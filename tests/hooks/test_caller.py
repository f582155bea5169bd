"""The techniques of a run: order, seeds, and errors that name the culprit."""

import inspect
from typing import Literal

import pytest
import torch
from numeric_toys import steps

import qplug
from qplug import InputError, PluginError, QuantSpec, Site, SiteKind
from qplug.core.errors import Terminated
from qplug.core.types import Event
from qplug.hooks.checks import check_technique
from qplug.hooks.manager import RENAMED
from qplug.hooks.specs import RunSpecs
from qplug.hooks.torch_state import torch_state_kept
from qplug.quantization.calibration.statistics import SiteStats

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


def test_a_technique_that_watches_is_named_where_it_raises():
    class Watches(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.watches"] = "toy.watches"

        @qplug.hookimpl
        def qplug_observe(self, event):
            raise KeyError(event.phase)

    with pytest.raises(PluginError, match="KeyError: 'start'") as caught:
        steps(Watches).observe("ranges", "start")
    assert caught.value.where == "toy.watches of qplug-toy 1.2.3, qplug_observe at ranges"


@pytest.mark.parametrize("end", [SystemExit(0), SystemExit("bye")], ids=repr)
def test_a_technique_cannot_end_the_process(end):
    with pytest.raises(PluginError, match="SystemExit") as caught:
        ask(steps(fail(end)))
    assert caught.value.where == "toy.fails of qplug-toy 1.2.3, qplug_make_quantizer at a.input"


@pytest.mark.parametrize("end", [KeyboardInterrupt(), Terminated(1)], ids=repr)
def test_whoever_stops_the_process_is_no_fault_of_the_technique(end):
    with pytest.raises(type(end)):
        ask(steps(fail(end)))


CHANGES = {
    "the default dtype from torch.float32 to torch.float64": lambda: torch.set_default_dtype(torch.float64),
    "the default device from cpu to meta": lambda: torch.set_default_device("meta"),
    "the number of threads from {} to {}": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "grad mode from True to False": lambda: torch.set_grad_enabled(False),
    "cudnn.benchmark from False to True": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "deterministic algorithms from False to True": lambda: torch.use_deterministic_algorithms(True),
}


@pytest.mark.parametrize("what", CHANGES)
def test_settings_of_torch_are_restored_and_the_technique_is_named(what):
    threads = torch.get_num_threads()
    found = steps(technique("toy.rude", lambda site: (CHANGES[what](), 1)[1]))
    for _ in range(2):
        assert ask(found)[1] == 1
    with torch_state_kept() as changed:
        assert torch.get_default_dtype() is torch.float32
        assert torch.zeros(1).device.type == "cpu"
        assert torch.get_num_threads() == threads
        assert torch.is_grad_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
    assert changed == []
    what = what.format(threads, threads + 1)
    assert found.notes() == [f"toy.rude: qplug_make_quantizer changed {what}; qplug restored it"]


def test_settings_of_torch_are_restored_after_an_error():
    def rude(site):
        torch.set_default_dtype(torch.float64)
        raise ValueError

    with pytest.raises(PluginError):
        ask(steps(technique("toy.rude", rude)))
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_name_of_a_hook_works_and_warns_with_the_new_one(old):
    parameters = {"qplug_estimate_range": "site", "qplug_bound_activation": "name", "qplug_alternate": "operands"}[old]
    body = {}
    exec(f"def {old}(self, {parameters}):\n    return 'old'", body)

    class Old(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.old"] = "toy.old"

    setattr(Old, old, qplug.hookimpl(body[old]))
    check_technique(Old, "toy")
    new = RENAMED[old]
    with pytest.warns(DeprecationWarning, match=rf"\.Old implements {old}, which is named {new} now"):
        found = steps(Old)
    names = [name for name in inspect.signature(getattr(RunSpecs, new)).parameters if name != "self"]
    assert found.first(new, **dict.fromkeys(names))[1] == "old"


def test_old_names_are_none_of_the_present_ones():
    known = set(vars(RunSpecs))
    assert set(RENAMED.values()) <= known
    assert not set(RENAMED) & known


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (lambda stats: stats.sample.mul_(2.0), "stats.sample"),
        (lambda stats: stats.sample[0].zero_(), "stats.sample"),
        (lambda stats: stats.max.fill_(1.0), "stats.max"),
        (lambda stats: stats.channel_max.abs_(), "stats.channel_max"),
    ],
)
def test_a_technique_that_writes_to_what_it_was_given_is_named(write, name):
    """Otherwise the steps behind it would see other statistics, without a word."""

    class Writer(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.writer"] = "toy.writer"

        @qplug.hookimpl
        def qplug_make_quantizer(self, stats):
            write(stats)

    stats = SiteStats.from_tensor(torch.randn(2, 3, 4))
    with pytest.raises(PluginError, match=rf"wrote to {name}, which the other techniques") as caught:
        steps(Writer).first(HOOK, site=SITE, spec=QuantSpec(4), stats=stats)
    assert "toy.writer" in caught.value.where
    assert f"{name}.clone()" in caught.value.fix


def test_a_weight_of_a_norms_group_is_not_to_be_written_either():
    class Writer(qplug.Technique):
        class Config(qplug.Config):
            use: Literal["toy.writer"] = "toy.writer"

        @qplug.hookimpl
        def qplug_smooth(self, group):
            group.weights[1].add_(1.0)

    group = qplug.NormGroup("norm", ("a", "b"), (torch.ones(2, 3), torch.ones(2, 3)))
    with pytest.raises(PluginError, match=r"wrote to group\.weights\[1\]"):
        steps(Writer).first("qplug_smooth", group=group, stats=None)
