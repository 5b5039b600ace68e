package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"google.golang.org/protobuf/proto"
)

// firstByte notes when the first byte of an output came. It is no bytes.Buffer, whose ReadFrom would bypass Write.
type firstByte struct {
	text []byte
	at   time.Time
}

func (w *firstByte) Write(data []byte) (int, error) {
	if w.at.IsZero() {
		w.at = time.Now()
	}
	w.text = append(w.text, data...)
	return len(data), nil
}

var sleeper = []string{"sleep", "1000000"}

const greeting = "ready\n"

// shimmed drives a shim through containerd and its own client.
type shimmed struct {
	node    *node
	runtime Runtime
}

func (s *shimmed) name() string            { return s.runtime.Name }
func (s *shimmed) id(suffix string) string { return s.runtime.Name + "-" + suffix }

func (s *shimmed) prepare(ctx context.Context, id string) (running, error) {
	container, err := s.node.container(ctx, s.runtime, id, sleeper...)
	if err != nil {
		return nil, err
	}
	return &shimmedTask{container: container}, nil
}

type shimmedTask struct {
	container client.Container
	task      client.Task
	exited    <-chan client.ExitStatus
}

func (t *shimmedTask) start(ctx context.Context) (err error) {
	if t.task, err = t.container.NewTask(ctx, cio.NullIO); err != nil {
		return err
	}
	if t.exited, err = t.task.Wait(ctx); err != nil {
		return err
	}
	return t.task.Start(ctx)
}

func (t *shimmedTask) exec(ctx context.Context, id string) (first, total time.Duration, err error) {
	spec, err := t.container.Spec(ctx)
	if err != nil {
		return 0, 0, err
	}
	how := *spec.Process
	how.Args = []string{"echo", strings.TrimSpace(greeting)}
	out := &firstByte{}
	started := time.Now()
	process, err := t.task.Exec(ctx, id, &how, cio.NewCreator(cio.WithStreams(nil, out, io.Discard)))
	if err != nil {
		return 0, 0, err
	}
	exited, err := process.Wait(ctx)
	if err != nil {
		return 0, 0, err
	}
	if err := process.Start(ctx); err != nil {
		return 0, 0, err
	}
	status := <-exited
	if _, err := process.Delete(ctx); err != nil { // waits for the end of the output
		return 0, 0, err
	}
	return out.at.Sub(started), time.Since(started), wrongExec(status.ExitCode(), string(out.text))
}

func wrongExec(status uint32, output string) error {
	if status != 0 || output != greeting {
		return fmt.Errorf("ended with %d and said %q", status, output)
	}
	return nil
}

func (t *shimmedTask) pids(ctx context.Context) error    { _, err := t.task.Pids(ctx); return err }
func (t *shimmedTask) metrics(ctx context.Context) error { _, err := t.task.Metrics(ctx); return err }
func (t *shimmedTask) delete(ctx context.Context) error  { _, err := t.task.Delete(ctx); return err }

func (t *shimmedTask) kill(ctx context.Context) error {
	if err := t.task.Kill(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	if status := <-t.exited; status.ExitCode() != 137 {
		return fmt.Errorf("status is %d, not 137 (%v)", status.ExitCode(), status.Error())
	}
	return nil
}

func (t *shimmedTask) discard(ctx context.Context) {
	if t.task != nil {
		t.task.Delete(ctx, client.WithProcessKill)
	}
	t.container.Delete(ctx, client.WithSnapshotCleanup)
}

// startAction runs the shim's `start` action as containerd 2.4 does and ends the shim that it left.
func (s *shimmed) startAction(c *common, i int) (time.Duration, error) {
	binary, err := c.find(s.runtime.Binary)
	if err != nil {
		return 0, err
	}
	id := s.id("action-" + strconv.Itoa(i))
	bundle := filepath.Join("/run/start-action", id)
	if err := os.MkdirAll(bundle, 0o711); err != nil {
		return 0, err
	}
	defer os.RemoveAll(bundle)
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte("{}"), 0o600); err != nil {
		return 0, err
	}
	if err := syscall.Mkfifo(filepath.Join(bundle, "log"), 0o700); err != nil {
		return 0, err
	}
	logs, err := os.OpenFile(filepath.Join(bundle, "log"), os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer logs.Close()
	params, err := proto.Marshal(&bootstrap.BootstrapParams{
		InstanceID: id, Namespace: s.node.namespace, ContainerdVersion: "2.4.2", ContainerdBinary: "containerd",
		ContainerdGrpcAddress: address, ContainerdTtrpcAddress: address + ".ttrpc",
	})
	if err != nil {
		return 0, err
	}
	before := pids()
	command := exec.Command(binary, "-namespace", s.node.namespace, "-address", address, "-publish-binary", "containerd", "-id", id, "start")
	command.Dir, command.Stdin = bundle, bytes.NewReader(params)
	command.Env = append(os.Environ(), "GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "TTRPC_ADDRESS="+address+".ttrpc", "GRPC_ADDRESS="+address, "NAMESPACE="+s.node.namespace)
	started := time.Now()
	output, err := command.CombinedOutput() // ends when the shim it leaves has let go of stdout and stderr
	took := time.Since(started)
	if err != nil {
		return 0, fmt.Errorf("start action: %w: %s", err, output)
	}
	for pid := range pids() {
		line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if !before[pid] && bytes.Contains(line, []byte("\x00"+id+"\x00")) || bytes.HasSuffix(line, []byte("\x00"+id)) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return took, nil
}
