# What a machine is made of, as raw text in sections. Runs under any POSIX sh, as any user, from standard input.
# It only reads: no file is written, nothing is installed, nothing is asked of the network but this machine's loopback.
# Argument 1: the path where models will lie.
# The braces make sh read the script to its end before it starts: no tool can swallow the rest of it from stdin.
LC_ALL=C
export LC_ALL
# Windows Subsystem for Linux keeps nvidia-smi in a folder of its own; sbin is not on every user's path.
PATH="$PATH:/usr/local/bin:/usr/sbin:/sbin:/usr/lib/wsl/lib"
export PATH
model_path=$1

section() { printf '\n@@provision %s\n' "$1"; }
have() { command -v "$1" >/dev/null 2>&1; }
# A broken driver makes its tools hang.
limited() { if have timeout; then timeout 10 "$@"; else "$@"; fi; }
show() { cat "$@" 2>/dev/null; }

get() {
    if have curl; then
        curl --silent --fail --max-time 2 --noproxy '*' "http://127.0.0.1:$1$2" 2>/dev/null
    elif have wget; then
        wget -q -T 2 -t 1 -O - --no-proxy "http://127.0.0.1:$1$2" 2>/dev/null
    elif have bash; then
        limited bash -c 'exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
            printf "GET %s HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n" "$2" >&3
            sed "1,/^\r*$/d" <&3' get "$1" "$2" 2>/dev/null
    fi
}

{
section uname
uname -n
uname -s
uname -r
uname -m

section os-release
show /etc/os-release || show /usr/lib/os-release

section cpuinfo
# Models and topology only: flags fill a screen per core.
grep -E '^(processor|model name|physical id|cpu cores|core id|Model|Hardware|cpu model)[[:space:]]*:' /proc/cpuinfo 2>/dev/null

section lscpu
have lscpu && lscpu 2>/dev/null

section cores
show /sys/devices/system/cpu/cpu[0-9]*/topology/core_cpus_list ||
    show /sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list

section online
getconf _NPROCESSORS_ONLN 2>/dev/null

section meminfo
show /proc/meminfo

section cgroup-memory
# One line per level, from this process's group up: limit, in use, and how much of that is file cache.
cgroup_memory() {
    [ -r "$1/$2" ] || return 0
    printf '%s %s %s\n' "$(show "$1/$2")" "$(show "$1/$3")" \
        "$(sed -n "s/^$4 //p" "$1/memory.stat" 2>/dev/null)"
}
own=$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null)
while :; do
    cgroup_memory "/sys/fs/cgroup$own" memory.max memory.current inactive_file
    case $own in */*) own=${own%/*} ;; *) break ;; esac
done
own=$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup 2>/dev/null)
while :; do
    cgroup_memory "/sys/fs/cgroup/memory$own" memory.limit_in_bytes memory.usage_in_bytes total_inactive_file
    case $own in */*) own=${own%/*} ;; *) break ;; esac
done

section disk
nearest=$model_path
while [ ! -e "$nearest" ] && [ "$nearest" != / ] && [ "$nearest" != . ]; do nearest=$(dirname -- "$nearest"); done
df -kP -- "$nearest" 2>/dev/null

section systemd
if [ -d /run/systemd/system ]; then limited systemctl is-system-running 2>&1; else echo absent; fi

section nvidia-driver
show /proc/driver/nvidia/version

section nvidia-smi
fields=index,name,uuid,memory.total,memory.free,driver_version,power.limit,ecc.mode.current
fields=$fields,pcie.link.gen.max,pcie.link.width.max
if have nvidia-smi; then
    # Drivers before 510 do not know compute_cap, and then answer nothing at all.
    cards=$(limited nvidia-smi --query-gpu=$fields,compute_cap --format=csv,noheader,nounits 2>&1)
    case $cards in
    *'is not a valid field'*) limited nvidia-smi --query-gpu=$fields --format=csv,noheader,nounits 2>&1 ;;
    *) printf '%s\n' "$cards" ;;
    esac
    section nvidia-smi-summary
    limited nvidia-smi 2>&1
fi

section nvidia-pci
for device in /sys/bus/pci/devices/*; do
    [ "$(show "$device/vendor")" = 0x10de ] || continue
    case $(show "$device/class") in 0x0300* | 0x0302*) echo "${device##*/}" ;; esac
done

section ollama-version
get 11434 /api/version

section ollama-tags
get 11434 /api/tags

for port in 8000 8080; do
    section "openai-$port-models"
    get $port /v1/models
    section "openai-$port-version"
    get $port /version
    section "openai-$port-props"
    get $port /props
done

section end
} </dev/null
