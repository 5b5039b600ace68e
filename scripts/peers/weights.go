package main

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// process is what somebody pays for while one task sleeps.
type process struct {
	Name string  `json:"name"`
	Kind string  `json:"kind"` // shim, helper or sandbox
	RSS  float64 `json:"rss_mib"`
	PSS  float64 `json:"pss_mib"`
}

func pids() map[int]bool {
	found := map[int]bool{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			found[pid] = true
		}
	}
	return found
}

// weights are the processes that were not there before, with what each has in memory.
func weights(before map[int]bool) (all []process) {
	for pid := range pids() {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if before[pid] || err != nil || len(line) == 0 {
			continue
		}
		p := process{Kind: "helper"}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		p.Name = filepath.Base(args[0])
		verb := func(v string) bool { return slices.Contains(args, v) }
		switch {
		case strings.HasPrefix(p.Name, "containerd-shim-"):
			p.Kind = "shim"
		case strings.HasPrefix(p.Name, "runsc") && (verb("boot") || verb("gofer")), p.Name == "sleep", p.Name == "exe" && (verb("boot") || verb("gofer")):
			p.Kind = "sandbox" // and what gVisor's systrap forks from it
		case strings.HasPrefix(p.Name, "runsc"):
			for _, v := range []string{"wait", "exec"} {
				if verb(v) {
					p.Name += " " + v
				}
			}
		}
		rollup, _ := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		for _, line := range strings.Split(string(rollup), "\n") {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kib, _ := strconv.ParseFloat(fields[1], 64)
			switch fields[0] {
			case "Rss:":
				p.RSS = math.Round(kib/1024*100) / 100
			case "Pss:":
				p.PSS = math.Round(kib/1024*100) / 100
			}
		}
		all = append(all, p)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Kind+all[i].Name > all[j].Kind+all[j].Name })
	return all
}
