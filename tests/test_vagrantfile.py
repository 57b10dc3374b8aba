"""The virtual machine's definition: valid where Vagrant can say so, and its choices, read with plain Ruby."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLAIN = "flags\t\t: fpu vme sse2\n"
INTEL = "flags\t\t: fpu vmx sse2\n"
AMD = "flags\t\t: fpu svm sse2\n"
BUG_NAMES_ONLY = PLAIN + "bugs\t\t: vmxoff svm\nvmx flags\t: vnmi\n"
TIMEOUT_S = 300.0
RECORDER = """
require "json"
cpuinfo, kvm, $seen = ARGV[0], ARGV[1] == "kvm", {}
File.singleton_class.prepend(Module.new do
  define_method(:readable?) { |path| path == "/proc/cpuinfo" ? !cpuinfo.empty? : super(path) }
  define_method(:read) { |path, *rest| path == "/proc/cpuinfo" ? cpuinfo : super(path, *rest) }
  define_method(:exist?) { |path| path == "/dev/kvm" ? kvm : super(path) }
end)
class Recorder
  def initialize(name) = @name = name
  def method_missing(called, *arguments, **options, &block)
    name = "#{@name}.#{called}"
    return $seen[name.delete_suffix("=")] = arguments[0] if called.end_with?("=")
    ($seen[name] ||= []) << [arguments, options] unless arguments.empty?
    recorder = Recorder.new(arguments.empty? ? name : "#{name}.#{arguments[0]}")
    block ? block.call(recorder) : recorder
  end
  def respond_to_missing?(*) = true
end
module Vagrant
  def self.configure(_version) = yield(Recorder.new("config"))
end
load ARGV[2]
puts JSON.dump($seen)
"""

needs_ruby = pytest.mark.skipif(not shutil.which("ruby"), reason="no ruby here to read the Vagrantfile")


@pytest.mark.skipif(not shutil.which("vagrant"), reason="vagrant is not installed here")
def test_vagrant_finds_the_vagrantfile_valid(tmp_path: Path) -> None:
    environment = os.environ | {"VAGRANT_HOME": str(tmp_path), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    command = ["vagrant", "validate"]
    if "vagrant-libvirt" not in plugins(environment):
        command.append("--ignore-provider")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_ruby
@pytest.mark.parametrize(
    ("cpuinfo", "kvm", "driver"),
    [
        (INTEL, True, "kvm"),
        (AMD, True, "kvm"),
        (PLAIN, True, "qemu"),
        (BUG_NAMES_ONLY, True, "qemu"),
        (INTEL, False, "qemu"),
    ],
)
def test_kvm_is_chosen_only_when_the_cpu_really_has_it(cpuinfo: str, kvm: bool, driver: str) -> None:
    assert evaluate(cpuinfo, kvm)["config.vm.provider.libvirt.driver"] == driver


@needs_ruby
def test_an_emulated_cpu_gets_no_torch_unless_asked() -> None:
    assert environment_kind(evaluate(PLAIN, kvm=True)) == "emulation"
    assert environment_kind(evaluate(INTEL, kvm=True)) == "full"
    assert environment_kind(evaluate("", kvm=False)) == "full", "VirtualBox on a machine without /proc"
    assert environment_kind(evaluate(PLAIN, kvm=True, PRFAAS_LAB_ENV="full")) == "full"


@needs_ruby
def test_only_an_emulated_cpu_is_asked_for_less() -> None:
    assert provision_arguments(evaluate(PLAIN, kvm=True))[1] == 10
    assert provision_arguments(evaluate(INTEL, kvm=True))[1] == 1


@needs_ruby
def test_both_providers_get_the_same_size_and_the_environment_may_set_it() -> None:
    seen = evaluate(INTEL, kvm=True, PRFAAS_LAB_VM_CPUS="3", PRFAAS_LAB_VM_MEMORY_MIB="8192")
    for provider in ("libvirt", "virtualbox"):
        assert seen[f"config.vm.provider.{provider}.cpus"] == 3
        assert seen[f"config.vm.provider.{provider}.memory"] == 8192


@needs_ruby
def test_the_box_may_be_one_s_own() -> None:
    assert evaluate(INTEL, kvm=True)["config.vm.box"] == "debian/bookworm64"
    assert evaluate(INTEL, kvm=True, PRFAAS_LAB_BOX="prfaas-lab")["config.vm.box"] == "prfaas-lab"


@needs_ruby
def test_the_checkout_goes_in_without_what_belongs_to_this_machine() -> None:
    [[arguments, options]] = evaluate(INTEL, kvm=True)["config.vm.synced_folder"]
    assert arguments == [".", "/vagrant"]
    assert options["type"] == "rsync"
    assert {".git", ".venv", "runs"} <= set(options["rsync__exclude"])


def test_the_emulation_tests_need_nothing_that_the_emulation_environment_lacks() -> None:
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.emulation" in path.read_text()]
    files.remove(Path(__file__))
    assert files
    lacking = {"torch", "transformers", "mypy", "ruff"}
    for path in files:
        assert not imported_by(path) & lacking, path


def test_the_emulation_environment_is_a_part_of_the_full_one() -> None:
    full, emulation = required("full"), required("emulation")
    assert set(emulation) < set(full)
    left_out = {line.partition("=")[0].partition(">")[0] for line in set(full) - set(emulation)}
    assert left_out == {"torch", "transformers", "mypy", "ruff", "types-PyYAML"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(project["dependencies"]) <= set(full)


@pytest.mark.parametrize("script", ["build-box", "wheels", "test", "environment.sh"])
def test_shell_scripts_parse(script: str) -> None:
    subprocess.run(["bash", "-n", ROOT / "scripts" / script], check=True, timeout=TIMEOUT_S)


def plugins(environment: dict[str, str]) -> str:
    listing = subprocess.run(
        ["vagrant", "plugin", "list"], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    return listing.stdout


def evaluate(cpuinfo: str, kvm: bool, **environment: str) -> dict[str, object]:
    """What the Vagrantfile sets on a machine with this /proc/cpuinfo and with or without /dev/kvm."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PRFAAS_LAB_")}
    done = subprocess.run(
        ["ruby", "-e", RECORDER, cpuinfo, "kvm" if kvm else "", ROOT / "Vagrantfile"],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return json.loads(done.stdout)


def environment_kind(seen: dict[str, object]) -> str:
    return provision_arguments(seen)[0]


def provision_arguments(seen: dict[str, object]) -> list[object]:
    provisions = seen["config.vm.provision"]
    return next(options["args"] for arguments, options in provisions if arguments == ["system"])


def imported_by(path: Path) -> set[str]:
    """Top-level packages in memory once this test file's imports have run, beside its own folder's."""
    lines = [
        ast.unparse(node)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    code = "\n".join([*lines, "import sys", "print(*{name.partition('.')[0] for name in sys.modules})"])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{path.parent}"},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def required(environment: str) -> list[str]:
    script = ROOT / "scripts" / "requirements.py"
    done = subprocess.run(
        [sys.executable, script, environment], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    return done.stdout.split("\n")[:-1]
