package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

func percentile(samples []float64, p float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	return s[max(0, int(math.Ceil(p/100*float64(len(s))))-1)]
}

// print writes the tables in Markdown, as docs/benchmarks.md has them.
func (b *benchmark) print() {
	fmt.Printf("Date %s, N = %d lives of each runtime, interleaved; milliseconds.\n\n", b.Date, b.N)
	for _, what := range []map[string]string{b.Machine, b.Versions} {
		for _, k := range slices.Sorted(maps.Keys(what)) {
			fmt.Printf("- %s: %s\n", k, what[k])
		}
	}
	var shown []*measured
	for _, m := range b.Runtimes {
		if m.Broken == "" {
			shown = append(shown, m)
		}
	}
	fmt.Print("\n| phase (p50 / p95 / p99) |")
	for _, m := range shown {
		fmt.Printf(" %s |", m.Runtime)
	}
	fmt.Print("\n|---|" + strings.Repeat("---|", len(shown)) + "\n")
	for _, phase := range append(slices.Clone(phases), "`start` action", "20 at once: until all run", "20 at once: until all are gone") {
		fmt.Printf("| %s |", phase)
		for _, m := range shown {
			switch s := m.Samples[phase]; {
			case len(s) == 0:
				fmt.Print(" – |")
			case len(s) < 20: // too few for a tail
				fmt.Printf(" %.1f (worst of %d: %.1f) |", percentile(s, 50), len(s), slices.Max(s))
			default:
				fmt.Printf(" %.1f / %.1f / %.1f |", percentile(s, 50), percentile(s, 95), percentile(s, 99))
			}
		}
		fmt.Println()
	}
	fmt.Print("\n| idle with one task, MiB (RSS / PSS) |")
	for _, m := range shown {
		fmt.Printf(" %s |", m.Runtime)
	}
	fmt.Print("\n|---|" + strings.Repeat("---|", len(shown)) + "\n")
	for _, kind := range []string{"shim", "helper", "sandbox"} {
		fmt.Printf("| %s |", kind)
		for _, m := range shown {
			var rss, pss float64
			var names []string
			for _, p := range m.Processes {
				if p.Kind == kind {
					rss, pss, names = rss+p.RSS, pss+p.PSS, append(names, p.Name)
				}
			}
			if len(names) == 0 {
				fmt.Print(" none |")
				continue
			}
			fmt.Printf(" %.1f / %.1f in %d", rss, pss, len(names))
			if kind == "helper" {
				fmt.Printf(" (%s)", strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), ", "))
			}
			fmt.Print(" |")
		}
		fmt.Println()
	}
	for _, m := range b.Runtimes {
		if m.Broken != "" {
			fmt.Printf("\n%s is not in the table: it does not start here: %s\n", m.Runtime, m.Broken)
		}
		if len(m.Failures) > 0 {
			fmt.Printf("\n%s failed in %d phases or lives; the first: %s\n", m.Runtime, len(m.Failures), m.Failures[0])
		}
	}
}

func machine() map[string]string {
	m := map[string]string{}
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		text := string(data)
		cores := strings.Count(text, "\nprocessor") + 1
		for _, line := range strings.Split(text, "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				m["cpu"] = fmt.Sprintf("%d × %s", cores, strings.TrimSpace(value))
				break
			}
		}
	}
	var info syscall.Sysinfo_t
	if syscall.Sysinfo(&info) == nil {
		m["memory"] = fmt.Sprintf("%.0f GiB", float64(info.Totalram)*float64(info.Unit)/(1<<30))
		m["load at the end"] = fmt.Sprintf("%.2f (1 minute)", float64(info.Loads[0])/65536)
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m["kernel"] = strings.TrimSpace(string(data))
	}
	m["cgroups"] = "v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m["cgroups"] = "v2"
	}
	return m
}

func versions(c *common) map[string]string {
	v := map[string]string{}
	for _, binary := range []string{"containerd-shim-creto-v2", "containerd", "runsc", "runc"} {
		path, err := c.find(binary)
		if err != nil {
			continue
		}
		flag := "--version"
		if strings.HasPrefix(binary, "containerd-shim") {
			flag = "-v"
		}
		output, _ := exec.Command(path, flag).CombinedOutput()
		v[binary] = strings.Join(strings.Fields(strings.SplitN(strings.TrimSpace(string(output)), "\n", 2)[0]), " ")
	}
	return v
}
