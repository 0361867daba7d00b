# setup/image.sh: how a guest image is made out of Debian's packages: a kernel as an ELF file, its modules and busybox as an
# initrd. Sourced by bash. The same packages give the same bytes.
# shellcheck shell=bash disable=SC2154 # $work is the caller's: a folder that goes away

complain() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# depended_on NAME: the first package on which a package depends, such as the newest kernel's.
depended_on() { apt-cache depends "$1" | awk '$1 == "Depends:" { print $2; exit }'; }

# kernel_package NAME: the package of the kernel that a meta package such as linux-image-amd64 stands for.
kernel_package() {
    local package
    package=$(depended_on "$1")
    if [ -z "$package" ]; then
        apt-get update -qq >&2
        package=$(depended_on "$1")
    fi
    [ -n "$package" ] || complain "apt knows no $1"
    echo "$package"
}

# unpack PACKAGE CACHE INTO: fetches a package, unless it is in the cache, and unpacks it.
unpack() {
    if ! ls "$2/$1_"*.deb >/dev/null 2>&1; then
        # apt fetches as another user, who may not enter every folder.
        (cd "$2" && apt-get download -qq -o APT::Sandbox::User=root "$1" >&2)
    fi
    mkdir -p "$3"
    dpkg-deb --fsys-tarfile "$(ls "$2/$1_"*.deb)" | tar -x -C "$3"
}

# Finds the compressed kernel in a bzImage (Linux's Documentation/arch/x86/boot.rst: payload_offset, payload_length).
payload() {
    local image=$1 setup offset length
    setup=$(od -An -tu1 -j $((0x1f1)) -N1 "$image" | tr -d ' ')
    [ "$setup" = 0 ] && setup=4
    offset=$(od -An -tu4 -j $((0x248)) -N4 "$image" | tr -d ' ')
    length=$(od -An -tu4 -j $((0x24c)) -N4 "$image" | tr -d ' ')
    dd if="$image" bs=64K iflag=skip_bytes,count_bytes skip=$(((setup + 1) * 512 + offset)) count="$length" status=none
}

# extract BZIMAGE ELF. Behind the compressed data Linux keeps the size of the plain one, which some of the tools complain about.
extract() {
    payload "$1" > "$work/payload"
    case $(od -An -tx1 -N4 "$work/payload" | tr -d ' ') in
        fd377a58) head -c -4 "$work/payload" | xz -dc > "$2" 2>/dev/null || true ;;
        02214c18) head -c -4 "$work/payload" | lz4 -dc > "$2" 2>/dev/null || true ;;
        28b52ffd) zstd -qdc "$work/payload" > "$2" 2>/dev/null || true ;;
        1f8b*) gzip -dc "$work/payload" > "$2" 2>/dev/null || true ;;
        *) complain "$1 is compressed in a way that is not known here" ;;
    esac
    [ "$(od -An -tx1 -N4 "$2" | tr -d ' ')" = 7f454c46 ] || complain "there is no ELF file in $1"
}

# add_module TREE ROOT NAME: copies a module and what it depends on, and notes the order in which they are to be loaded.
add_module() {
    local tree=$1 root=$2 name=${3//-/_} file depends dependency
    grep -qx "$name" "$root/lib/modules/order" && return
    file=$(find "$tree/lib/modules" \( -name "$name.ko*" -o -name "${name//_/-}.ko*" \) | head -n 1)
    [ -n "$file" ] || return 0 # built in
    depends=$(modinfo -F depends "$file")
    for dependency in ${depends//,/ }; do add_module "$tree" "$root" "$dependency"; done
    case $file in
        *.ko) cp "$file" "$root/lib/modules/$name.ko" ;;
        *.ko.xz) xz -dc "$file" > "$root/lib/modules/$name.ko" ;;
        *.ko.zst) zstd -qdc "$file" > "$root/lib/modules/$name.ko" ;;
    esac
    echo "$name" >> "$root/lib/modules/order"
}

# make_root TREE ROOT NAME...: a root folder with busybox and these modules.
make_root() {
    local tree=$1 root=$2 module
    shift 2
    mkdir -p "$root"/{bin,dev,proc,sys,tmp,etc,run,root,lib/modules}
    : > "$root/lib/modules/order"
    for module in "$@"; do add_module "$tree" "$root" "$module"; done
    cp /bin/busybox "$root/bin/busybox"
}

# pack ROOT INITRD
pack() {
    find "$1" -exec touch -hd @0 {} +
    (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --null -o -H newc -R 0:0 --reproducible --quiet) > "$2"
}

# recipe_of PACKAGE FILE...: what an image is made of; if this is what it was made of before, there is nothing to do.
recipe_of() {
    printf 'kernel %s\nbusybox %s\n' "$1" "$(dpkg-query -W -f '${Version}' busybox-static)"
    shift
    (cd "$here" && sha256sum "$@")
}

# publish FOLDER IMAGE: puts a finished image in its place.
publish() {
    chmod -R a+rX "$1"
    rm -rf "$2"
    mv "$1" "$2"
}
