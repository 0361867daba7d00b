# setup/lib.sh: what ./run, ./test and ./bench share: saying, installing, building. Sourced by bash.
# shellcheck shell=bash disable=SC2034

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# What a node needs to run; what the build and the tests need beside it; what only the benches need.
RUN_PACKAGES="qemu-system-x86 qemu-utils fuse3 busybox-static cpio zstd lz4 xz-utils kmod iproute2 util-linux"
BUILD_PACKAGES="gcc libc6-dev make"
TEST_PACKAGES="diod e2fsprogs faketime nftables shellcheck zsh dash procps python3-venv"
BENCH_PACKAGES="diod libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu gcc libfuse3-dev pkg-config etcd-server etcd-client nftables"

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# need_packages NAME...: installs those that are missing, as root; as an ordinary user says what is missing.
need_packages() {
    local missing=() name
    for name in "$@"; do installed "$name" || missing+=("$name"); done
    [ ${#missing[@]} -gt 0 ] || return 0
    [ "$(id -u)" = 0 ] || die "these packages are missing: ${missing[*]} (as root: apt-get install ${missing[*]})"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || die "apt-get update failed: see above"
    # All of them, so that none is removed for another's sake.
    apt_install "$@" || die "apt-get could not install ${missing[*]}: see above"
    for name in "$@"; do installed "$name" || die "apt-get did not install $name: see above"; done
}

# QEMU's packages must be of one version: where one of them came from elsewhere (backports), the versions are made equal.
apt_install() {
    local version names=() name
    if apt-get install -s -qq --no-install-recommends --no-remove "$@" >/dev/null 2>&1; then
        apt-get install -y -qq --no-install-recommends --no-remove "$@" >/dev/null
        return
    fi
    version=$(apt-cache policy qemu-system-x86 | awk '$1 == "Candidate:" { print $2 }')
    for name in "$@"; do case $name in qemu-*) ;; *) names+=("$name") ;; esac; done
    apt-get install -y -qq --no-install-recommends --allow-downgrades \
        "qemu-system-x86=$version" "qemu-utils=$version" "${names[@]}" >/dev/null
}

# The oldest Rust that builds this, as Cargo.toml says.
rust_version() { sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml; }

need_rust() {
    local want have
    want=$(rust_version)
    export PATH="$HOME/.cargo/bin:$PATH"
    if ! command -v cargo >/dev/null; then
        need_packages ca-certificates curl
        say "installing Rust with rustup (Debian's own is too old)"
        curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --quiet --profile minimal -c rustfmt -c clippy >&2 ||
            die "Rust $want or newer is needed and rustup could not fetch it: install it by hand, then run this again"
    fi
    have=$(cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$want" "$have" | sort -V | head -n 1)" = "$want" ] ||
        die "Rust $want or newer is needed, and this is $have: 'rustup update stable' brings it"
}

# build release|dev: builds the binary and prints its path.
build() {
    local profile=$1 folder=$1
    [ "$profile" = dev ] && folder=debug
    say "building blixard ($profile); the first time takes some minutes"
    cargo build --quiet --locked --profile "$profile" --bin blixard >&2 || die "the build failed: see above"
    printf '%s/%s/blixard\n' "${CARGO_TARGET_DIR:-$PWD/target}" "$folder"
}
