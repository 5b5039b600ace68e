# The quickstart's second half, sourced by it: a node's network and an internet in namespaces of their own, creto-egress
# between them, and what a sandbox reaches. Nothing of the host's network is touched.
#
#   box ── bridge ── node (creto-egress) ── inet: DNS, HTTPS

open=open.example closed=closed.example
resolver=9.9.9.9 open_at=93.184.215.14 closed_at=93.184.215.15 # public ones, for special ranges are refused; they stay in inet
egress_pid= internet_pid= execs=0

netns() { echo "${dir##*/}-$1"; }
nsip() { ip -n "$(netns "$1")" "${@:2}"; }
become() { exec setsid nsenter --net="/run/netns/$(netns "$1")" "${@:2}"; } # for the background, so that $! is the program's

need_programs() {
  local need
  for need in /usr/bin/python3=python3 openssl=openssl ip=iproute2 nsenter=util-linux curl=curl; do
    command -v "${need%=*}" >/dev/null || fail "${need%=*} is not in PATH" "apt-get install ${need#*=}"
  done
}

# Waits for a condition that a process brings about; tells that one's last words if it ends before.
until_it() { # NAME PID LOG CONDITION…
  local name=$1 pid=$2 log=$3 deadline=$((SECONDS + 30)); shift 3
  until "$@" >/dev/null 2>&1; do
    kill -0 "$pid" 2>/dev/null || fail "$name ended: $(tail -n 1 "$log")" "please report this"
    [ $SECONDS -lt $deadline ] || fail "$name has not done it in 30 s: $(tail -n 1 "$log")" "please report this"
    sleep 0.05
  done
}

make_network() {
  local name
  for name in inet node box; do ip netns add "$(netns $name)" && nsip $name link set lo up || return; done
  nsip node link add uplink type veth peer name downlink netns "$(netns inet)" &&
    nsip node addr add 81.2.69.1/24 dev uplink && nsip node link set uplink up &&
    nsip inet addr add 81.2.69.2/24 dev downlink && nsip inet link set downlink up &&
    nsip node route add default via 81.2.69.2 || return
  for name in $resolver $open_at $closed_at; do nsip inet addr add "$name/32" dev lo || return; done
  nsip node link add br0 address 02:00:00:00:00:01 type bridge && nsip node addr add 10.89.0.1/24 dev br0 &&
    nsip node link set br0 up && nsip inet route add 10.89.0.0/24 via 81.2.69.1 &&
    nsenter --net="/run/netns/$(netns node)" sh -c 'echo 1 > /proc/sys/net/ipv4/ip_forward' || return # so only the fence holds it
  nsip node link add box type veth peer name eth0 netns "$(netns box)" && nsip node link set box master br0 up &&
    nsip box addr add 10.89.0.10/24 dev eth0 && nsip box link set eth0 up && nsip box route add default via 10.89.0.1
}

start_internet() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj "/CN=$open" \
    -addext "subjectAltName=DNS:$open,DNS:$closed" -keyout "$dir/key.pem" -out "$dir/certificate.pem" 2>"$dir/openssl.log" \
    || fail "no certificate: $(tail -n 1 "$dir/openssl.log")" "is openssl >= 1.1.1?"
  become inet /usr/bin/python3 scripts/quickstart.d/internet.py $resolver "$dir/certificate.pem" "$dir/key.pem" \
    $open=$open_at $closed=$closed_at >"$dir/internet.log" 2>&1 </dev/null &
  internet_pid=$!
  until_it internet.py $internet_pid "$dir/internet.log" grep -qx ready "$dir/internet.log"
}

start_egress() {
  mkdir -p "$dir/creto/etc/policies.d"
  printf '[dns.upstream]\nservers = [{ address = "%s:53" }]\n' $resolver > "$dir/creto/etc/egress.toml"
  printf '[[rules]]\nid = "open"\ndestination = "%s"\nports = [443]\naction = "Allow"\n' $open > "$dir/creto/etc/policies.d/quickstart.toml"
  become node "$daemons/creto-egress" --root "$dir/creto" >"$dir/egress.log" 2>&1 </dev/null &
  egress_pid=$!
  until_it creto-egress $egress_pid "$dir/egress.log" cli network-policy list --sandboxes
}

# visit answered|refused HOST: what becomes of it inside the sandbox, and after how long.
visit() {
  execs=$((execs + 1))
  ctr task exec --exec-id "visit$execs" network /usr/bin/python3 /visit.py "$1" "$2" /certificate.pem \
    || fail "https://$2 should have been $1" "please report this"
}

denials() { cli audit search --sandbox-id network --event EgressDenied; }
both_denied() { local found; found=$(denials) && grep -qF $closed <<<"$found" && grep -qF $closed_at <<<"$found"; }

show_fence() {
  can_network "$runsc" || fail "$runsc is too old to have a network on this kernel" "install Go >= 1.24, or a runsc of August 2024 or later"
  step "making an internet of two sites, $open and $closed, in namespaces of their own"
  make_network || fail "the namespaces could not be wired" "the kernel needs veth and bridge: modprobe -a veth bridge"
  start_internet
  step "starting creto-egress; the policy \"quickstart\" allows $open on 443 and nothing else"
  start_egress
  local run="--runtime io.containerd.creto.v2 --annotation creto.dev/agent=$agent --annotation creto.dev/network-policy=quickstart --with-ns network:/run/netns/$(netns box)"
  local mounts=() mount # the host's python3, for busybox speaks no TLS that others do
  for mount in /usr=/usr "$(realpath /lib)=/lib" "$(realpath /lib64)=/lib64" "$PWD/scripts/quickstart.d/visit.py=/visit.py" "$dir/certificate.pem=/certificate.pem"; do
    [ ! -e "${mount%=*}" ] || mounts+=(--mount "type=bind,src=${mount%=*},dst=${mount#*=},options=rbind:ro")
  done
  step "ctr run -d $run $busybox_image"
  ctr run -d --null-io --snapshotter "$snapshotter" $run "${mounts[@]}" "$busybox_image" network sleep 1000000 \
    || fail "the sandbox did not start" "read the error above; the kernel needs nf_tables (Linux >= 5.2)"
  step "from inside: the allowed site, the denied one, and the denied one by its address"
  visit answered $open
  visit refused $closed
  visit refused $closed_at
  step "creto-runtime-cli audit search --event EgressDenied: what was refused, to whom"
  until_it creto-egress "$egress_pid" "$dir/egress.log" both_denied
  denials
  step "creto-runtime-cli network-policy test --destination $closed --sandbox-id network: why"
  cli network-policy test --destination $closed --sandbox-id network || fail "it cannot be told" "please report this"
  step "creto-runtime-cli network-policy add-rule --destination $closed --port 443 --action Allow --policy quickstart"
  cli network-policy add-rule --destination $closed --port 443 --action Allow --policy quickstart >&2 \
    || fail "the rule was refused" "please report this"
  step "the same sandbox, not restarted"
  visit answered $closed
}

end_network() {
  end_process "$egress_pid"
  end_process "$internet_pid"
  local name
  for name in box node inet; do
    if [ -e "/run/netns/$(netns $name)" ]; then ip netns del "$(netns $name)"; fi
  done
}
