#!/usr/bin/env bash
# Make the folders of `make install`, and remove those that are empty.
#
#   tools/folders.sh make DESTDIR RECORD FOLDER...   make them; write to RECORD which were not there before
#   tools/folders.sh remove DESTDIR LIST             remove the folders of LIST that are empty
#
# All paths are below DESTDIR; RECORD names them without it. Folders of an earlier installation stay in RECORD.
set -euo pipefail

fail() {
    echo "autoip: $*" >&2
    exit 1
}

make_folders() {
    local destdir=$1 record=$1$2 folder made=()
    shift 2
    for folder; do
        # From the folder itself up to the first one that is there.
        while [[ $folder != / && $folder != . && ! -d $destdir$folder ]]; do
            made+=("$folder")
            folder=$(dirname "$folder")
        done
    done
    for folder; do
        install -d "$destdir$folder"
    done
    ((${#made[@]})) || return 0
    printf '%s\n' "${made[@]}" >>"$record"
    sort -ru -o "$record" "$record"
}

remove_folders() {
    # In reverse order of names: a folder comes before the one that it is in.
    local folder
    while read -r folder; do
        [[ -z $folder || ! -d $1$folder ]] || rmdir --ignore-fail-on-non-empty "$1$folder"
    done <<<"$(sort -r <<<"$2")"
}

case ${1:-} in
make) make_folders "${@:2}" ;;
remove) remove_folders "${@:2}" ;;
*) fail "unknown command: ${1:-} (make, remove)" ;;
esac
