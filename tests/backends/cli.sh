# shellcheck shell=bash disable=SC2016,SC2086,SC2094
# The scenarios of podman and docker, whose command lines agree. $E is either.

# The images, once a machine: `bb`, of busybox alone, and `layers`, with what storages make of removed things.
scenario_import() {
    $E import "$ASSETS/busybox.tar" bb:1 >import.log 2>&1 || $E import - bb:1 <"$ASSETS/busybox.tar"
    $E import "$ASSETS/base.tar" base:1 >import.log 2>&1 || $E import - base:1 <"$ASSETS/base.tar"
    $E images --format '{{.Repository}}:{{.Tag}}' | sed 's|^localhost/||' | sort
}

run() { $E run --rm --network none "$@"; }

# name_of_root: where the tree of a running container is.
merged_of() {
    $E inspect --format '{{.GraphDriver.Data.MergedDir}}' "$1"
}

# stop NAME…: containers whose programs heed no SIGTERM.
stop() {
    if [ "$E" = docker ]; then docker rm -f "$@" >/dev/null; else $E rm -f -t 0 "$@" >/dev/null; fi
}

scenario_run() {
    run bb:1 echo hello
    try run bb:1 sh -c 'exit 7'
    try run bb:1 no-such-program >/dev/null
    echo input | $E run --rm -i --network none bb:1 cat
    run bb:1 sh -c 'cat /etc/issue; rm /etc/issue; ls /etc | sort | tr "\n" " "; mkdir /etc/issue; ls -ld /etc/issue | cut -c 1-10'
    # A user other than root, in directories that all may write.
    run -u 1000:1000 bb:1 sh -c 'echo x >/tmp/x; cat /tmp/x; mkdir /tmp/d; mv /tmp/x /tmp/d/y; cat /tmp/d/y; ls -ln /tmp/d/y | cut -d " " -f 1-4; rm -r /tmp/d; rm /etc/issue' || echo "exit $?"
    # A name of 255 bytes, hard and symbolic links, special files, times, a set-id program, holes.
    run bb:1 sh -c 'n=$(printf "%0255d" 7); echo long >/etc/$n; cat /etc/$n; rm /etc/$n; test ! -e /etc/$n
        ln /etc/passwd /etc/passwd2; echo more:x:7:7::/:/bin/sh >>/etc/passwd2; tail -n 1 /etc/passwd; stat -c %h /etc/passwd
        ln -s passwd /etc/link; readlink /etc/link; mkfifo /etc/fifo; stat -c "%F" /etc/fifo
        touch -d "1960-01-02 03:04:05" /etc/old; stat -c %Y /etc/old
        cp /bin/busybox /bin/idroot; chmod 4755 /bin/idroot; stat -c %a /bin/idroot
        mv /usr/share/tree /usr/share/moved; find /usr/share/moved | sort; mv /usr/share/moved /usr/share/tree
        truncate -s 1G /etc/hole; stat -c "%s %b" /etc/hole; umask 077; echo x >/etc/private; stat -c %a /etc/private'
}

scenario_exec() {
    $E run -d --name exec --network none bb:1 sleep 1000 >/dev/null
    $E exec exec sh -c 'echo from exec >/srv/file; cat /srv/file'
    echo input | $E exec -i exec sh -c 'cat >>/srv/file'
    $E exec -u 1000 exec sh -c 'cat /srv/file; touch /srv/no || echo refused'
    $E exec -e A=b -w /srv exec sh -c 'echo $A; pwd; ls'
    try $E exec exec sh -c 'exit 9'
    # A program of the lower goes on while its file is replaced and removed.
    $E exec exec sh -c 'cp /bin/busybox /bin/new; mv /bin/new /bin/busybox; rm -rf /usr/share/tree; ls /usr/share'
    stop exec
}

# Builds the image of ./Containerfile; then what is in it, what its layers hold and how it runs.
scenario_build() {
    cp "$SCRIPTS/Containerfile" .
    cp -r "$ASSETS/debs" .
    $E build --network none -t built:1 -f Containerfile . >build.log 2>&1 || {
        tail -n 50 build.log >&2
        fail build
    }
    run -e T0="$T0" built:1 sh -c "$FACTS"
    $E history --format '{{.CreatedBy}}' built:1 | grep -c .
    # Everything is cached now.
    $E build --network none -t built:2 -f Containerfile . | grep -ci 'using cache' || true
}

scenario_commit() {
    $E run --name commit --network none layers:1 sh -c 'rm -rf /usr/share/tree; mkdir /usr/share/tree; echo new >/usr/share/tree/new
        rm /etc/issue; rm -rf /usr/share/many; echo more:x:7:7::/:/bin/sh >>/etc/passwd; ln -s x /etc/link; mv /usr/share/other /usr/share/moved
        chown -R 33:33 /srv /opt; mkdir -p /opt/a/b; echo x >/opt/a/b/c; rm -rf /usr/share/locale; mkdir /usr/share/locale; chmod 700 /var'
    $E commit -m 'a change' -c 'CMD ["cat", "/opt/a/b/c"]' commit committed:1 >/dev/null 2>&1 || $E commit -c 'CMD ["cat", "/opt/a/b/c"]' commit committed:1 >/dev/null
    $E rm commit >/dev/null
    run committed:1
    run -e T0="$T0" committed:1 sh -c "$BUSYBOX_FACTS"
    # A second commit on top of it.
    $E run --name commit2 --network none committed:1 sh -c 'rm -rf /opt/a; mkdir /opt/a; mkdir /usr/share/many; echo 1 >/usr/share/many/1'
    $E commit commit2 committed:2 >/dev/null 2>&1
    $E rm commit2 >/dev/null
    run committed:2 sh -c 'find /opt /usr/share | sort'
    # What others would be given.
    $E save -o committed.tar committed:2 2>/dev/null
    $E rmi committed:2 committed:1 >/dev/null
    $E load -i committed.tar >/dev/null 2>&1
    run -e T0="$T0" committed:2 sh -c "$BUSYBOX_FACTS"
}

scenario_diff() {
    $E run -d --name diff --network none layers:1 sh -c 'rm -rf /usr/share/tree; rm /etc/issue; echo more:x:7:7::/:/bin/sh >>/etc/passwd
        rm -rf /usr/share/many; mv /usr/share/plain /usr/share/moved; rm -rf /usr/share/other; echo file >/usr/share/other
        mkdir -p /opt/a; echo x >/opt/a/b; chmod 600 /etc/group; echo done >/done; sleep 1000' >/dev/null
    wait_for $E exec diff test -e /done
    # Of a live container, and of one that is at rest.
    $E diff diff | sort
    $E kill diff >/dev/null
    $E diff diff | sort
    if [ $E = podman ]; then
        $E commit -q diff diff:1 >/dev/null
        $E diff diff:1 | sort
    fi
    stop diff
    # A directory in the place of one that was removed: podman says that it was removed, with a native overlay; that
    # it was changed, and what was removed, with a mount program.
    $E run --name replaced --network none layers:1 sh -c 'rm -rf /usr/share/tree; mkdir /usr/share/tree; echo new >/usr/share/tree/new'
    $E diff replaced | sort >replaced
    if ! grep -qx 'D /usr/share/tree' replaced; then
        printf '%s /usr/share/tree%s\n' A /new C '' D /a D /b >expected
        grep /usr/share/tree replaced | LC_ALL=C sort | diff - <(sort expected)
    fi
    stop replaced
}

scenario_cp() {
    mkdir -p in/sub
    echo one >in/one
    echo two >in/sub/two
    chmod 750 in/sub
    $E create --name cp --network none layers:1 sleep 1000 >/dev/null
    $E cp in/one cp:/srv/one
    $E cp in cp:/srv/dir
    $E cp cp:/etc/passwd out-passwd
    cat out-passwd
    $E start cp >/dev/null
    $E cp in/. cp:/opt
    $E exec cp sh -c 'find /srv /opt | sort; cat /srv/dir/sub/two; stat -c "%a %n" /srv/dir/sub'
    $E exec cp sh -c 'rm -rf /usr/share/tree; mkdir /usr/share/tree; echo 1 >/usr/share/tree/1'
    $E cp cp:/usr/share out
    (cd out && find . | sort)
    $E cp cp:/usr/share/tree - | tar -t | sed 's|/$||' | sort
    # Whole, as an archive.
    $E export cp | tar --numeric-owner -tv | awk '{ print $1, $2, $6, $7, $8 }' | grep -vE ' (etc/(hosts|hostname|resolv.conf|mtab)|\.dockerenv|(dev|proc|sys|run|tmp|var/tmp)/.*|dev|proc|sys|run)( |$)' | sed 's|/$||' | sort
    stop cp
}

scenario_save_load() {
    $E save -o layers.tar layers:1 2>/dev/null
    $E tag layers:1 saved:1
    run -e T0="$T0" layers:1 sh -c "$BUSYBOX_FACTS" >before
    $E rmi -f layers:1 saved:1 >/dev/null
    $E load -i layers.tar >/dev/null 2>&1
    run -e T0="$T0" layers:1 sh -c "$BUSYBOX_FACTS" >after
    cmp before after
    cat after
    # Once more: the same bytes.
    $E save -o again.tar layers:1 2>/dev/null
    layer_facts layers.tar >one
    layer_facts again.tar >two
    cmp one two
    wc -l <one | grep -vx 0 >/dev/null
}

scenario_read_only() {
    run --read-only layers:1 sh -c 'cat /usr/share/tree/a; touch /srv/x; echo $?; rm /etc/passwd; echo $?; mkdir /usr/share/tree/d; echo $?' 2>/dev/null
    run --read-only --tmpfs /srv layers:1 sh -c 'echo x >/srv/x; cat /srv/x'
    run --read-only -v "$PWD:/mnt" layers:1 sh -c 'echo from inside >/mnt/x; ls /usr/share'
    cat x
}

# Other ids: with podman's keep-id where it is allowed, with a mapping where not.
scenario_userns() {
    local how=(--userns=keep-id)
    if [ "$PRIVILEGE" = root ]; then how=(--uidmap 0:100000:2000 --gidmap 0:100000:2000); fi
    # shellcheck disable=SC2016
    run "${how[@]}" layers:1 sh -c 'id -u; stat -c "%u:%g %a %n" /etc/passwd /usr/share/tree /srv /tmp; touch /tmp/mine; stat -c %u:%g /tmp/mine; touch /etc/x || echo refused' 2>/dev/null
    run "${how[@]}" -u 0 layers:1 sh -c 'echo x >/etc/x; stat -c %u:%g /etc/x; rm -rf /usr/share/tree; mkdir /usr/share/tree; ls /usr/share/tree; chown -R 33:33 /usr/share; stat -c %u:%g /usr/share/locale'
    $E run --name userns --network none "${how[@]}" -u 0 layers:1 sh -c 'echo mapped >/etc/mapped; chown 33:33 /etc/mapped; rm /etc/issue'
    $E commit -q userns userns:1 >/dev/null
    $E diff userns | sort
    stop userns
    run userns:1 sh -c 'stat -c "%u:%g %n" /etc/passwd; ls /etc'
    # The owner in the image is the one that the container showed. With the kernel's overlayfs as root, podman 4.3
    # commits the one that the host shows.
    run userns:1 stat -c %u:%g /etc/mapped >owner
    if [ "$DRIVER.$PRIVILEGE" != kernel.root ] || [ "$(cat owner)" != 100033:100033 ]; then
        [ "$(cat owner)" = 33:33 ] || fail "the owner in the image is $(cat owner)"
    fi
}

scenario_volumes() {
    # A new volume takes what the image has there.
    run -v data:/usr/share/tree layers:1 sh -c 'ls /usr/share/tree; echo kept >/usr/share/tree/kept; rm /usr/share/tree/a'
    run -v data:/usr/share/tree layers:1 sh -c 'ls /usr/share/tree; cat /usr/share/tree/kept'
    mkdir -p dir
    echo host >dir/host
    run -v "$PWD/dir:/mnt:ro" layers:1 sh -c 'cat /mnt/host; touch /mnt/x || echo refused' 2>/dev/null
    run -v "$PWD/dir/host:/etc/passwd" layers:1 sh -c 'cat /etc/passwd'
    # The volumes of one container in another.
    $E create --name volumes -v data:/data layers:1 true >/dev/null
    run --volumes-from volumes layers:1 ls /data
    stop volumes
    $E volume rm data >/dev/null
    if [ $E = podman ]; then
        # An overlay over a directory of the host, and an image as a mount: mounts of the mount program again.
        run -v "$PWD/dir:/mnt:O" layers:1 sh -c 'cat /mnt/host; echo changed >/mnt/host; rm /mnt/host; mkdir /mnt/host; ls -l /mnt | wc -l'
        cat dir/host
        run --mount type=image,source=layers:1,destination=/image bb:1 sh -c 'ls /image/usr/share; touch /image/x || echo refused' 2>/dev/null
        run --mount type=image,source=layers:1,destination=/image,rw=true bb:1 sh -c 'touch /image/x; ls /image'
    fi
}

scenario_two_at_once() {
    local name i pids=()
    for name in left right; do $E run -d --name $name --network none layers:1 sleep 1000 >/dev/null; done
    for name in left right; do
        for i in 1 2 3 4; do
            $E exec $name sh -c "for n in \$(seq 200); do echo $name >/usr/share/tree/$name-$i-\$n; done; echo $name >/etc/issue" &
            pids+=($!)
        done
    done
    for i in "${pids[@]}"; do wait "$i"; done
    for name in left right; do
        $E exec $name sh -c 'ls /usr/share/tree | wc -l; cat /etc/issue; ls /usr/share/tree | head -n 3'
        $E diff $name | wc -l
    done
    stop left right
    # Eight that come and go at the same time.
    for i in 1 2 3 4 5 6 7 8; do
        run layers:1 sh -c "echo $i >/etc/issue; cat /etc/issue" >"$i" &
    done
    wait
    cat 1 2 3 4 5 6 7 8
}

scenario_prune() {
      printf 'FROM layers:1\nRUN echo gone >/gone\nRUN rm /gone\n' >Containerfile
    $E build --network none -t pruned:1 -f Containerfile . >build.log 2>&1
    $E run --name pruned --network none pruned:1 sh -c 'ls /; rm -rf /usr; mkdir /usr'
    $E rmi pruned:1 >/dev/null 2>&1 || echo in use
    $E container prune -f >/dev/null
    $E rmi pruned:1 >/dev/null
    $E image prune -f >/dev/null
    $E volume prune -f >/dev/null
    $E ps -aq | wc -l
    # What is left still works.
    run layers:1 ls /usr/share/tree
}

# The daemon of a running container's mount is killed; the engine cleans up, and nothing else is harmed.
scenario_killed() {
    local before pid
    $E run -d --name other --network none layers:1 sleep 1000 >/dev/null
    before=$(daemons)
    $E run -d --name killed --network none layers:1 sleep 1000 >/dev/null
    $E exec killed sh -c 'echo kept >/srv/kept; sync'
    pid=$(comm -13 <(sort <<<"$before") <(daemons | sort))
    if [ "$DRIVER" = kernel ]; then
        $E kill killed >/dev/null
    else
        [ "$(wc -w <<<"$pid")" = 1 ] || fail "daemons before: $before, new: $pid"
        in_engine kill -9 "$pid"
        if $E exec killed cat /srv/kept >exec.log 2>&1; then fail 'the dead mount answers'; fi
    fi
    $E exec other cat /usr/share/tree/a
    stop killed 2>rm.log || {
        cat rm.log >&2
        fail 'rm -f of a container whose mount is dead'
    }
    $E ps -a --format '{{.Names}}'
    # The name, the image and the place are free again.
    run --name killed layers:1 sh -c 'ls /srv; echo again >/srv/kept; cat /srv/kept'
    $E exec other cat /usr/share/tree/b
    stop other
}

# A container that was at work when its mount's daemon was killed is started again, with what was synced.
scenario_restarted() {
    local before pid
    before=$(daemons)
    $E run -d --name restarted --network none layers:1 sleep 1000 >/dev/null
    $E exec restarted sh -c 'echo kept >/srv/kept; rm -rf /usr/share/tree; mkdir /usr/share/tree; sync'
    pid=$(comm -13 <(sort <<<"$before") <(daemons | sort))
    if [ "$DRIVER" != kernel ]; then
        [ "$(wc -w <<<"$pid")" = 1 ] || fail "daemons before: $before, new: $pid"
        in_engine kill -9 "$pid"
    fi
    $E kill restarted >/dev/null 2>&1 || true
    wait_for sh -c "test \$($E inspect --format '{{.State.Running}}' restarted) = false"
    wait_for $E start restarted
    $E exec restarted sh -c 'cat /srv/kept; ls /usr/share/tree | wc -l; cat /etc/issue'
    stop restarted
}

# What AUFS whiteouts in the layers hide, layer by layer.
scenario_whiteouts() {
    cp "$SCRIPTS/Containerfile.layers" Containerfile
    $E build --network none -t layers:1 -f Containerfile . >build.log 2>&1 || {
        cat build.log >&2
        fail build
    }
    run -e T0="$T0" layers:1 sh -c "$BUSYBOX_FACTS"
    # The marks are not to be seen, and can't be made.
    run layers:1 sh -c 'find / -xdev -name ".wh.*" | wc -l'
}

# Mounts are taken away while files in them are in use: those go on, and the daemon ends with the last.
scenario_lazy() {
    local merged before pid remove
    before=$(daemons)
    $E run -d --name lazy --network none layers:1 sleep 1000 >/dev/null
    pid=$(comm -13 <(sort <<<"$before") <(daemons | sort))
    merged=$(merged_of lazy)
    remove='podman rm -f -t 0'
    if [ $E = docker ]; then remove='docker rm -f'; fi
    # shellcheck disable=SC2016
    in_engine bash -euc '
        exec 3<"$1/etc/issue" 4>>"$1/srv/file"
        $2 lazy >/dev/null
        cat <&3
        echo after >&4
        stat -L -c %s /proc/self/fd/4' bash "$merged" "$remove"
    if [ "$DRIVER" != kernel ]; then
        [ "$(wc -w <<<"$pid")" = 1 ] || fail "daemons before: $before, new: $pid"
        wait_for sh -c "! kill -0 $pid"
    fi
}

# Mounts that never sync: what `mountopt` in storage.conf asks for, and what a container of its own may be mounted with.
scenario_volatile() {
    cp "$STORAGE_CONF" before
    # shellcheck disable=SC2064 # as it is now
    trap "cat '$PWD/before' >'$STORAGE_CONF'" EXIT
    sed "s|^\[storage.options.overlay\]|&\nmountopt = \"volatile\"|" before >"$STORAGE_CONF"
    $E run -d --name volatile --network none layers:1 sleep 1000 >/dev/null
    # podman hands it to mount programs only.
    if [ "$DRIVER" != kernel ]; then
        daemons | xargs ps -o args= -p | grep -q ,volatile || fail 'the mount is not volatile'
    fi
    $E exec volatile sh -c 'echo kept >/srv/kept; sync; rm -rf /usr/share/tree; mkdir /usr/share/tree; sync -f /srv/kept; cat /srv/kept'
    # Again, over what the first mount has left.
    $E stop -t 0 volatile >/dev/null
    $E start volatile >/dev/null
    $E exec volatile sh -c 'cat /srv/kept; ls /usr/share/tree | wc -l; echo more >>/srv/kept'
    $E commit -q volatile volatile:1 >/dev/null
    stop volatile
    run volatile:1 sh -c 'cat /srv/kept; ls /usr/share/tree | wc -l'
    printf 'FROM volatile:1\nRUN echo built >/srv/built; rm /srv/kept\nRUN mv /srv/built /srv/moved\n' >Containerfile
    $E build -q --network none -t volatile:2 -f Containerfile . >/dev/null
    run volatile:2 ls /srv
}

# git clone of a repository in a lower layer makes hard links of its objects and looks whether they are the same.
scenario_git() {
    cat >Containerfile <<'END'
FROM base:1
COPY debs /debs
RUN apt-get install -y --no-install-recommends /debs/*.deb && useradd --create-home --uid 1000 builder
USER builder
RUN git init -q -b main /home/builder/src && cd /home/builder/src && seq 1 2000 >numbers && git add . && \
    git -c user.name=b -c user.email=b@localhost commit -q -m first
END
    cp -r "$ASSETS/debs" .
    $E build --network none -t git:1 -f Containerfile . >build.log 2>&1
    run git:1 sh -c 'git clone -q /home/builder/src /home/builder/copy && cd /home/builder/copy && git fsck --full 2>&1 && wc -l <numbers && echo x >>numbers && git status --porcelain && git gc -q && git log --format=%s'
}

# The one line is changed under images and containers that the kernel's driver has made; then things go on.
scenario_switch() {
    local conf=$PWD/storage.conf
    sed -e '/^graphroot/d' -e '/^runroot/d' -e "s|^driver.*|&\ngraphroot = \"$PWD/storage\"\nrunroot = \"${XDG_RUNTIME_DIR:-/run}/switch\"|" "$STORAGE_CONF" >"$conf"
    sed -e '/mount_program/d' "$conf" >kernel.conf
    export CONTAINERS_STORAGE_CONF=$PWD/kernel.conf
    $E import -q "$ASSETS/busybox.tar" bb:1 >/dev/null 2>&1
    printf 'FROM bb:1\nRUN rm -rf /usr/share/tree; mkdir /usr/share/tree; echo 1 >/usr/share/tree/1\nRUN rm /etc/issue; rm -rf /usr/share/tree; echo x >/usr/share/tree\n' >Containerfile
    $E build -q --network none -t switch:1 -f Containerfile . >/dev/null
    $E run --name before --network none switch:1 sh -c 'rm /usr/share/tree; echo before >/srv/before; rmdir /opt; mkdir /var/new'
    export CONTAINERS_STORAGE_CONF=$conf
    $E run --rm --network none -e T0="$T0" switch:1 sh -c "$BUSYBOX_FACTS"
    $E diff before | sort
    $E commit -q before switch:2 >/dev/null
    $E run --rm --network none switch:2 sh -c 'find /usr/share /var /srv | sort; cat /srv/before'
    $E start before >/dev/null
    stop before
    printf 'FROM switch:1\nRUN mkdir /srv/new; rm -rf /usr/share\n' >Containerfile
    $E build -q --network none -t switch:3 -f Containerfile . >/dev/null
    $E run --rm --network none switch:3 sh -c 'find /usr /srv | grep -v busybox | sort'
}

# Every command of the README's page, in its order.
scenario_readme() {
    if [ "$ENGINE" = podman ]; then
        readme_storage podman
        readme_commands podman
    else
        printf 'FROM bb:1\nRUN echo hello >/hello\nCMD ["cat", "/hello"]\n' >Dockerfile
        readme_commands dockerd
        rm -f $BIN/fuse-overlayfs
        # There is no systemd here to do it.
        # shellcheck disable=SC2317 # the README's commands call it
        systemctl() { dockerd_stop && dockerd_start; }
        if [ "$PRIVILEGE" = rootless ]; then sed -i "s|/etc/docker|$HOME/.config/docker|g" commands.sh; fi
        set -x
        # shellcheck source=/dev/null
        . ./commands.sh
        return
    fi
    bash -xeuo pipefail commands.sh
}

# For tools/bench-engines: milliseconds, on stdout. The machine is entered once a round; its storage stays.
milliseconds() {
    local start
    start=$(date +%s%N)
    "$@" >milliseconds.log 2>&1 || fail "$(tail -n 5 milliseconds.log)"
    echo $((($(date +%s%N) - start) / 1000000))
}

scenario_time_build() {
    # On fuse-overlayfs 2.0.0 apt-get gets EIO, and git as a plain user EACCES: without them there is a time to compare.
    sed -e 's/apt-get install -y --no-install-recommends/dpkg -i/' -e 's/apt-get purge -y/dpkg --purge/' -e '/^USER/d' \
        "$SCRIPTS/Containerfile" >Containerfile
    if ! [ -d debs ]; then cp -r "$ASSETS/debs" .; fi
    milliseconds $E build --no-cache --network none -t built:1 -f Containerfile .
    $E image prune -f >/dev/null
}

scenario_time_run() {
    local i
    $E image exists built:1 || $E tag base:1 built:1
    # The first one after a start of the machine makes the user namespace and what is beneath /run.
    run built:1 true
    for i in 1 2 3 4 5; do milliseconds run built:1 true; done | sort -n | sed -n 3p
}

# Nothing is left: no process of the driver, no mount.
scenario_nothing_left() {
    # shellcheck disable=SC2046
    stop $($E ps -aq) 2>/dev/null || true
    if [ $E = podman ]; then $E unmount -af >/dev/null 2>&1 || true; fi
    wait_for sh -c "! pgrep -f '^($BIN/)?(rovl|fuse-overlayfs) '"
    # The table begins with what others have mounted on this host.
    in_engine sh -c 'grep -E " fuse(\.[^ ]*)? |/merged " /proc/self/mountinfo | grep -cF " $1/" || true' sh "$DIR"
    $E ps -aq | wc -l
}
