package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"syscall"
)

// A jail is a mount and a PID namespace with its own /run, /var/lib and /opt: a containerd in it meets no other, sockets
// of shims land in a /run/containerd of its own, and when process 1 ends the kernel ends the rest, so that nothing can be left
// behind. The network, the cgroups and every other file are the machine's.

// inJail runs a command in a fresh jail below dir and waits for its end.
func inJail(ctx context.Context, dir string, env []string, command ...string) error {
	for _, d := range []string{"lib", "opt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	c := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"jail", dir}, command...)...)
	c.Stdout, c.Stderr, c.Env = os.Stdout, os.Stderr, env
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL, // the calling goroutine is locked to the main thread (main.go)
	}
	return c.Run()
}

// jail is process 1: it mounts, starts the command, and reaps whatever is orphaned.
func jail(_ context.Context, args []string) error {
	dir, command := args[0], args[1:]
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w (a jail needs root)", err)
	}
	// With the machine's /proc a runtime would look itself up under a wrong number.
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := syscall.Mount("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	for source, target := range map[string]string{"lib": "/var/lib", "opt": "/opt"} {
		if err := syscall.Mount(filepath.Join(dir, source), target, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting over %s: %w", target, err)
		}
	}
	process, err := os.StartProcess(command[0], command, &os.ProcAttr{Files: []*os.File{nil, os.Stdout, os.Stderr}, Env: os.Environ()})
	if err != nil {
		return err
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err != nil && !errors.Is(err, syscall.EINTR):
			return err
		case pid == process.Pid && status.Signaled():
			return fmt.Errorf("%s was killed: %s", command[0], status.Signal())
		case pid == process.Pid:
			os.Exit(status.ExitStatus())
		}
	}
}

// cleanCgroups removes the empty cgroups that a jail's tasks left below /name: a jail has the machine's cgroups.
func cleanCgroups(name string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/" + name)
	for _, root := range append(roots, "/sys/fs/cgroup/"+name) {
		var dirs []string
		filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		sort.Sort(sort.Reverse(sort.StringSlice(dirs)))
		for _, d := range dirs {
			os.Remove(d)
		}
	}
}
