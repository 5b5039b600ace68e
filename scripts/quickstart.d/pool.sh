# The quickstart's last part, sourced by it: the node's agent, a pool of three sandboxes with Debian's Python, and a claim of
# one of them beside a sandbox that is made when it is asked for. Needs the network of network.sh.

python_image=creto.dev/debian/python:3
agent_pid=

# A CNI configuration of the node's own: its addresses are not the fence's, and nobody else's files are written.
install_agent() {
  local etc=$dir/creto/etc plugins=
  sed -e "s|/run/creto/ipam|$dir/creto/run/ipam|" -e 's|10.89.0.0/16|10.88.0.0/16|' -e 's|"ipMasq": true|"ipMasq": false|' \
    configs/cni/10-creto.conflist > "$etc/10-creto.conflist"
  if [ ! -x /opt/cni/bin/bridge ] && [ ! -x /usr/lib/cni/bridge ]; then
    plugins=$(part_bin cni) || fail "the CNI plugins could not be installed" "apt-get install containernetworking-plugins"
  fi
  cat > "$etc/pool-agent.toml" <<TOML
holder = "$shim/creto-hold"
[containerd]
address = "$dir/c.sock"
state = "$dir/state"
snapshotter = "$snapshotter"
[network]
conflist = "$etc/10-creto.conflist"
${plugins:+plugins = ["$plugins"]}
TOML
}

start_agent() {
  install_agent
  nsip inet route add 10.88.0.0/16 via 81.2.69.1 || fail "the internet has no way back to the pool" "please report this"
  become node "$daemons/creto-pool-agent" --root "$dir/creto" >"$dir/agent.log" 2>&1 </dev/null &
  agent_pid=$!
  until_it creto-pool-agent $agent_pid "$dir/agent.log" cli health
}

ask_agent() { nsenter --net="/run/netns/$(netns node)" curl --silent --show-error "http://localhost:8080$1"; } # PATH

# timed FILE COMMAND…: its output, how many ms it said that it took (in FILE), and how many the whole of it took (in $took).
timed() {
  local file=$1 before; shift
  before=$(now)
  "$@" 2> >(tee "$file" >&2) || fail "it ended with status $?" "read its output above, and $dir/agent.log"
  took=$(($(now) - before))
  wait $! || true # tee's, or the time may not be in the file yet
}
said() { grep -oE '^(spawn|claim): [0-9.]+ms' "$1" | grep -oE '[0-9.]+'; } # FILE

show_pool() {
  step "starting creto-pool-agent, the node's agent"
  start_agent
  step "importing $python_image, made of Debian's packages"
  local python
  python=$(part_bin python) || fail "Python's image could not be made" "is the Debian mirror reachable?"
  ctr -n creto image import --snapshotter "$snapshotter" "${python%/bin}/python.tar" >/dev/null || fail "the image was refused" "please report this"
  step "creto-runtime-cli pool create demo --image $python_image --min-ready 3 --wait"
  cli pool create demo --image $python_image --min-ready 3 --wait || fail "the pool is not ready" "read $dir/agent.log"

  local hello='import base64, json, sys
claims = json.loads(base64.urlsafe_b64decode(open("/run/creto/identity.jwt").read().split(".")[1] + "=="))
print("  hello from Python", sys.version.split()[0], "in", claims["sub"].split("/")[-1], "for", claims["act"]["sub"])'
  local cold cold_all warm
  step "creto-runtime-cli spawn --image $python_image --agent $agent --time --wait -- python3 -c …: made when it is asked for"
  timed "$dir/cold" cli spawn --image $python_image --agent $agent --time --wait -- python3 -c "$hello"
  cold=$(said "$dir/cold") cold_all=$took
  step "creto-runtime-cli claim demo --agent $agent --time -- python3 -c …: it has waited for this"
  timed "$dir/warm" cli claim demo --agent $agent --time -- python3 -c "$hello"
  warm=$(said "$dir/warm")
  echo
  printf '  %-28s %14s %14s\n' "" "cold spawn" "warm claim" "the sandbox is its caller's" "$cold ms" "$warm ms" \
    "and Python has said hello" "$cold_all ms" "$took ms"
  echo

  step "creto-runtime-cli pool stats demo"
  cli pool stats demo || fail "it cannot be told" "read $dir/agent.log"
  step "curl http://localhost:8080/health"
  ask_agent /health || fail "the API does not answer" "read $dir/agent.log"
  echo
  step "curl http://localhost:8080/metrics, of the pool"
  ask_agent /metrics | grep -E '^creto_runtime_(pool_(ready_count|claimed_count|claims_total)|pool_claim_latency_seconds_(count|sum)|sandboxes)\{' \
    || fail "nothing is counted" "read $dir/agent.log"
}

end_agent() { end_process "$agent_pid"; }
