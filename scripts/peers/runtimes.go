package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Runtime is a shim under comparison, by the short name used on the command line and in tables.
type Runtime struct{ Name, Type, Binary string }

var known = []Runtime{
	{"creto", "io.containerd.creto.v2", "containerd-shim-creto-v2"},
	{"runc", "io.containerd.runc.v2", "containerd-shim-runc-v2"},
	{"runsc", "io.containerd.runsc.v1", "containerd-shim-runsc-v1"},
}

func runtimeNamed(name string) (Runtime, error) {
	for _, r := range known {
		if r.Name == name {
			return r, nil
		}
	}
	return Runtime{}, fmt.Errorf("there is no runtime %q: creto, runc and runsc (gVisor's own shim) are known", name)
}

// Names is a repeatable, comma-separated flag of runtimes.
type Names []Runtime

func (n *Names) String() string { return "" }
func (n *Names) Set(value string) error {
	for _, name := range strings.Split(value, ",") {
		r, err := runtimeNamed(name)
		if err != nil {
			return err
		}
		*n = append(*n, r)
	}
	return nil
}

// Common flags: what runs, with which binaries, and where the results go.
type common struct {
	runtimes Names
	path     string // PATH of every jail: shims, containerd, runsc, runc
	busybox  string // a static busybox, from which the images are made
	json     string
}

func (c *common) register(f *flag.FlagSet) {
	f.Var(&c.runtimes, "runtime", "creto, runc or runsc; repeatable")
	f.StringVar(&c.path, "path", os.Getenv("PATH"), "PATH inside the jails")
	f.StringVar(&c.busybox, "busybox", "", "a static busybox")
	f.StringVar(&c.json, "json", "", "write the results to this file")
}

// find looks a binary up in the jails' PATH.
func (c *common) find(binary string) (string, error) {
	for _, dir := range filepath.SplitList(c.path) {
		p := filepath.Join(dir, binary)
		if info, err := os.Stat(p); err == nil && info.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not in the jails' PATH (%s): run scripts/setup, and `cargo build --release` for our own shim", binary, c.path)
}

// choose takes the default where no runtime was asked for, and checks that each is there.
func (c *common) choose(names string) error {
	if len(c.runtimes) == 0 {
		c.runtimes.Set(names)
	}
	for _, r := range c.runtimes {
		if _, err := c.find(r.Binary); err != nil {
			return err
		}
	}
	return nil
}
