package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cli drives runsc's command line, with the same spec and snapshot as the shims get from containerd.
type cli struct {
	node *node
	root string
}

func (c *cli) name() string            { return bare }
func (c *cli) id(suffix string) string { return "bare-" + suffix }

func (c *cli) prepare(ctx context.Context, id string) (running, error) {
	container, err := c.node.container(ctx, Runtime{Name: "creto", Type: "io.containerd.creto.v2"}, id, sleeper...)
	if err != nil {
		return nil, err
	}
	spec, err := container.Spec(ctx)
	if err != nil {
		return nil, err
	}
	t := &cliTask{cli: c, id: id, bundle: filepath.Join(c.root+"-bundles", id), container: container}
	spec.Root = &specs.Root{Path: filepath.Join(t.bundle, "rootfs")}
	if err := os.MkdirAll(spec.Root.Path, 0o755); err != nil {
		return nil, err
	}
	return t, writeJSON(filepath.Join(t.bundle, "config.json"), spec)
}

type cliTask struct {
	*cli
	id, bundle string
	container  client.Container
	waiter     *exec.Cmd
}

func (t *cliTask) runsc(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "runsc", append([]string{"--root", t.root}, args...)...)
}

// quietly runs a command with /dev/null as its output: the sandbox keeps what its creator had, and a pipe would never end.
func (t *cliTask) quietly(ctx context.Context, args ...string) error {
	if err := t.runsc(ctx, args...).Run(); err != nil {
		return fmt.Errorf("runsc %s: %w", args[0], err)
	}
	return nil
}

func (t *cliTask) start(ctx context.Context) error {
	mounts, err := t.node.SnapshotService("").Mounts(ctx, t.id)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if err := m.Mount(filepath.Join(t.bundle, "rootfs")); err != nil {
			return err
		}
	}
	if err := t.quietly(ctx, "create", "--bundle", t.bundle, t.id); err != nil {
		return err
	}
	return t.quietly(ctx, "start", t.id)
}

func (t *cliTask) exec(ctx context.Context, id string) (first, total time.Duration, err error) {
	out := &firstByte{}
	command := t.runsc(ctx, "exec", t.id, "echo", strings.TrimSpace(greeting))
	command.Stdout = out
	started := time.Now()
	if err := command.Run(); err != nil {
		return 0, 0, err
	}
	return out.at.Sub(started), time.Since(started), wrongExec(0, string(out.text))
}

func (t *cliTask) pids(ctx context.Context) error { return t.quietly(ctx, "ps", t.id) }
func (t *cliTask) metrics(ctx context.Context) error {
	return t.quietly(ctx, "events", "--stats", t.id)
}

func (t *cliTask) kill(ctx context.Context) error {
	wait := t.runsc(ctx, "wait", t.id)
	if err := wait.Start(); err != nil {
		return err
	}
	if err := t.quietly(ctx, "kill", t.id, "KILL"); err != nil {
		return err
	}
	return wait.Wait()
}

func (t *cliTask) delete(ctx context.Context) error {
	if err := t.quietly(ctx, "delete", t.id); err != nil {
		return err
	}
	return syscall.Unmount(filepath.Join(t.bundle, "rootfs"), 0)
}

func (t *cliTask) discard(ctx context.Context) {
	t.runsc(ctx, "delete", "--force", t.id).Run()
	syscall.Unmount(filepath.Join(t.bundle, "rootfs"), syscall.MNT_DETACH)
	t.container.Delete(ctx, client.WithSnapshotCleanup)
	os.RemoveAll(t.bundle)
}
