# Makes a checkout ready: system packages and virtual environments. Sourced by `run` with $root set and as the working
# directory; POSIX sh. Doing it again costs next to nothing, doing it twice at once is safe where flock(1) exists.
#
# The quick way out is a stamp in each virtual environment, written last: a hash of whatever decided its contents.
# shellcheck shell=sh
# shellcheck disable=SC2086  # lists of packages are split into words on purpose

root=${root:?set by the script that sources this}

BASE_PACKAGES="fuse3 libfuse3-dev pkg-config gcc libc6-dev python3-dev python3-venv"
# For ./run test only: each a command that tests run, and the package that has it.
TEST_COMMANDS="jq:jq rsync:rsync file:file tar:tar strace:strace systemd-analyze:systemd fio:fio stress-ng:stress-ng nginx:nginx-light"

say() { printf 'run: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# --- one at a time ---------------------------------------------------------------------------------------------------

lock() {
    have flock || return 0
    exec 9>"$root/.bootstrap.lock"
    flock -n 9 || {
        say "waiting for another ./run that is installing"
        flock 9
    }
}

# The descriptor must not live on in what is started afterwards: a mount may outlast us and would keep the lock.
unlock() { exec 9>&-; }

# --- Python ----------------------------------------------------------------------------------------------------------

# Prints a Python that will do; fails if there is none.
find_python() {
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if have "$candidate" &&
            "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return 0
        fi
    done
    return 1
}

# An old Python is told of before anything is installed; none at all is what the packages are for.
refuse_old_python() {
    if have python3 && ! find_python >/dev/null; then
        die "shardfs needs Python 3.11 to 3.14, and this is $(python3 --version 2>&1): install one, or name it in PYTHON="
    fi
}

# --- system packages -------------------------------------------------------------------------------------------------

# Prints those of the packages given that dpkg does not have installed.
missing_debs() {
    for package in "$@"; do
        case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
            installed) ;;
            *) printf '%s ' "$package" ;;
        esac
    done
}

# Prints the packages whose commands are not found.
missing_test_packages() {
    for pair in $TEST_COMMANDS; do
        have "${pair%%:*}" || printf '%s ' "${pair##*:}"
    done
    missing_python_tests
}

# Debian's Python comes without its own tests, which tests/mount/test_foreign_suites.py runs; another one that has none
# has that test skipped.
missing_python_tests() {
    .venv/bin/python -c 'import test.test_os' 2>/dev/null && return 0
    library=libpython$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    have dpkg-query && [ "$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')" = /usr ] &&
        [ -z "$(missing_debs "$library-stdlib")" ] && printf '%s ' "$library-testsuite"
    return 0
}

# Is all of BASE_PACKAGES there in effect, whoever installed it? For systems without apt.
base_works() {
    have fusermount3 && have pkg-config && pkg-config --exists fuse3 && { have gcc || have cc; } &&
        python=$(find_python) && "$python" -c 'import ensurepip, os, sys, sysconfig, venv
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' 2>/dev/null
}

# apt_install WHY PACKAGE...
apt_install() {
    why=$1
    shift
    if [ "$(id -u)" = 0 ]; then
        as_root=""
    elif have sudo; then
        as_root="sudo"
    else
        die "$why needs Debian packages, and this is neither root nor is there a sudo. As root: apt-get install -y $*"
    fi
    say "installing Debian packages for $why with ${as_root:+$as_root }apt-get: $*"
    log=$(mktemp)
    # A broken third-party source fails the update though it has nothing to do with us: the installation decides.
    $as_root apt-get -q -o DPkg::Lock::Timeout=300 update >"$log" 2>&1 </dev/null || true
    if $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y \
            --no-install-recommends "$@" >>"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 30 "$log" >&2
        rm -f "$log"
        die "apt-get failed, see above"
    fi
}

# What the packages are called elsewhere; ends the run.
tell_other_systems() {
    say "$1, and there is no apt-get here to install it. One of these does, then run this again:"
    if have dnf || ! { have pacman || have apk; }; then
        printf '    dnf install fuse3 fuse3-devel pkgconf-pkg-config gcc python3-devel jq rsync file tar strace systemd fio stress-ng\n' >&2
    fi
    if have pacman || ! { have dnf || have apk; }; then
        printf '    pacman -S --needed fuse3 pkgconf gcc python jq rsync file tar strace systemd fio stress-ng\n' >&2
    fi
    if have apk || ! { have dnf || have pacman; }; then
        printf '    apk add fuse3 fuse3-dev pkgconf gcc musl-dev linux-headers python3-dev jq rsync file tar strace fio stress-ng\n' >&2
    fi
    exit 1
}

base_packages() {
    if have apt-get && have dpkg-query; then
        missing=$(missing_debs $BASE_PACKAGES)
        [ -z "$missing" ] || apt_install "building and mounting" $missing
    elif ! base_works; then
        tell_other_systems "shardfs needs FUSE 3, a C compiler and Python 3.11 or later with headers and venv"
    fi
}

test_packages() {
    missing=$(missing_test_packages)
    [ -n "$missing" ] || return 0
    lock
    missing=$(missing_test_packages)
    if [ -z "$missing" ]; then
        :
    elif have apt-get; then
        apt_install "the tests" $missing
    elif [ "$missing" = "systemd " ]; then
        say "no systemd-analyze here: the test of the unit file will say so"
    else
        tell_other_systems "the tests run programs that are missing ($missing)"
    fi
    unlock
}

# --- virtual environments --------------------------------------------------------------------------------------------

# stamp_of VENV FILE...: what the stamp must say. The path counts because a virtual environment does not survive a move.
stamp_of() {
    venv=$1
    shift
    { "$venv/bin/python" --version && printf '%s\n' "$root" && cat "$@"; } 2>/dev/null | sha256sum
}

# is_ready VENV FILE...
is_ready() {
    [ -r "$1/stamp" ] && [ -x "$1/bin/python" ] && [ "$(cat "$1/stamp")" = "$(stamp_of "$@")" ]
}

# make_venv VENV: an empty one. pip's own version does not matter: what it installs is pinned.
make_venv() {
    python=$(find_python) || die "shardfs needs Python 3.11 to 3.14: install one, or name it in PYTHON="
    mkdir -p "$(dirname "$1")"
    quietly "$1.log" "$python" -m venv --clear "$1"
}

# quietly LOG COMMAND...: shows what the command said only if it failed.
quietly() {
    log=$1
    shift
    if "$@" >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 40 "$log" >&2
        die "failed: $* (all of it in $log)"
    fi
}

bootstrap() {
    # fusermount3 is asked for each time because it is what a mount needs of the system from day to day.
    if have fusermount3 && is_ready .venv pyproject.toml requirements/constraints.txt; then
        return 0
    fi
    lock
    refuse_old_python
    base_packages
    if ! is_ready .venv pyproject.toml requirements/constraints.txt; then
        say "installing shardfs and what it needs into .venv (about a minute, once)"
        make_venv .venv
        # The constraints hold for the environments in which packages are built, too; older versions of pip take them
        # from the first variable, newer ones from the second. Relative, because the first is split at spaces.
        quietly .venv.log env PIP_CONSTRAINT=requirements/constraints.txt \
            PIP_BUILD_CONSTRAINT=requirements/constraints.txt \
            .venv/bin/python -m pip --disable-pip-version-check install -e '.[all,dev]'
        stamp_of .venv pyproject.toml requirements/constraints.txt >.venv/stamp
    fi
    unlock
}

# interop_venv NAME: .venv-interop/NAME from requirements/interop-NAME.txt, which is complete.
interop_venv() {
    venv=.venv-interop/$1
    pins=requirements/interop-$1.txt
    is_ready "$venv" "$pins" && return 0
    lock
    if ! is_ready "$venv" "$pins"; then
        say "installing the real $1 library into $venv (a few minutes, once)"
        make_venv "$venv"
        quietly "$venv.log" "$venv/bin/python" -m pip --disable-pip-version-check install --no-deps -r "$pins"
        if [ "$1" = streaming ]; then
            site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
            printf '%s\n' "$root/tests/interop/stubs" >"$site/shardfs-interop-stubs.pth"
        fi
        stamp_of "$venv" "$pins" >"$venv/stamp"
    fi
    unlock
}
