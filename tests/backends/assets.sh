# shellcheck shell=bash
# assets.sh DIR: what the images are made of, into DIR: busybox.tar (busybox and a few files), base.tar (a minimal
# Debian with perl) and debs/ (git and less, with all that they need beyond it).
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022
DIR=$1
mkdir -p "$DIR/debs" "$DIR/busybox"
cd "$DIR/busybox"
mkdir -p bin etc usr/share/tree/sub usr/share/plain/in srv opt tmp var root dev proc sys run
chmod 1777 tmp
cp "$(command -v busybox)" bin/busybox
while read -r applet; do
    if [ "$applet" != busybox ]; then ln -s busybox "bin/$applet"; fi
done < <(busybox --list)
printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >etc/passwd
echo 'root:x:0:' >etc/group
echo 'busybox' >etc/issue
for file in a b c sub/s; do echo "$file" >"usr/share/tree/$file"; done
echo plain >usr/share/plain/in/p
find . -exec touch -h -d @1700000000 {} +
tar --numeric-owner --owner 0 --group 0 --sort name -cf "$DIR/busybox.tar" .

# This machine's own apt sources.
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -s "$file" ] || continue
    if grep -qE '(debian|ubuntu)-archive-keyring' "$file" || [ "$file" = /etc/apt/sources.list ]; then
        sources+=("$file")
    fi
done
# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
apt-config dump | grep -E '^Acquire::((http|https)::(Proxy|No-Cache)|Check-Valid-Until|Check-Date|Retries)' >"$DIR/apt.conf" || true
# shellcheck disable=SC2016 # the hooks' own variables
DEBS=$DIR/debs mmdebstrap --quiet --mode=root --variant=minbase --include=perl --aptopt="$DIR/apt.conf" --format=tar \
    --dpkgopt='path-exclude=/usr/share/i18n/*' \
    --customize-hook='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
    --customize-hook='export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"; apt-get clean
        apt-get install -y -qq --no-install-recommends --download-only git less
        cp "$1"/var/cache/apt/archives/*.deb "$DEBS"' \
    "$suite" "$DIR/base.tar" "${sources[@]}"
rm -rf "$DIR/busybox"
# Everything in the images is older than this file.
sleep 1
touch "$DIR/base.tar"
