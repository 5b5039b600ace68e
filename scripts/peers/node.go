package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

const address = "/run/containerd/containerd.sock" // in a jail: nobody else's

// Without CRI: nothing here needs it, and it looks for CNI on the machine.
const config = `version = 3
disabled_plugins = ["io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"]
`

// node is a containerd of this jail, with the busybox image unpacked.
type node struct {
	*client.Client
	image     client.Image
	namespace string
}

// startNode starts containerd; it ends with the jail.
func startNode(ctx context.Context, busybox, log, namespace string) (context.Context, *node, error) {
	file := "/run/containerd.toml"
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		return ctx, nil, err
	}
	output, err := os.Create(log)
	if err != nil {
		return ctx, nil, err
	}
	daemon := exec.Command("containerd", "--config", file, "--address", address)
	daemon.Stdout, daemon.Stderr = output, output
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		return ctx, nil, fmt.Errorf("starting containerd: %w: run `scripts/setup containerd-2`", err)
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	n := &node{namespace: namespace}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		n.Client, err = client.New(address, client.WithTimeout(time.Second))
		if err == nil {
			if serving, _ := n.IsServing(ctx); serving {
				break
			}
			n.Close()
		}
		if time.Now().After(deadline) {
			return ctx, nil, fmt.Errorf("containerd did not come up in 20 s; its log ends: %s", tail(log, 5))
		}
	}
	archive, err := busyboxArchive(busybox)
	if err != nil {
		return ctx, nil, err
	}
	images, err := n.Import(ctx, archive)
	if err != nil {
		return ctx, nil, fmt.Errorf("importing the image: %w", err)
	}
	n.image = client.NewImage(n.Client, images[0])
	return ctx, n, n.image.Unpack(ctx, "")
}

// container makes a container, not yet a task, of the node's image.
func (n *node) container(ctx context.Context, r Runtime, id string, args ...string) (client.Container, error) {
	spec := []oci.SpecOpts{oci.WithImageConfig(n.image), oci.WithProcessArgs(args...)}
	if r.Name == "runsc" {
		// gVisor's own shim waits in Create for ever without what CRI would say.
		spec = append(spec, oci.WithAnnotations(map[string]string{
			"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": id,
		}))
	}
	return n.NewContainer(ctx, id, client.WithImage(n.image), client.WithNewSnapshot(id, n.image),
		client.WithRuntime(r.Type, nil), client.WithNewSpec(spec...))
}

// busyboxArchive is the image as an OCI layout in a tar stream.
func busyboxArchive(busybox string) (io.Reader, error) {
	files, err := busyboxFiles(busybox)
	if err != nil {
		return nil, err
	}
	s := &store{blobs: map[string][]byte{}}
	manifest := s.manifest(s.layer(files))
	manifest.Annotations = map[string]string{"io.containerd.image.name": "creto.test/busybox:latest"}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{manifest}})
	if err != nil {
		return nil, err
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	add := func(name string, data []byte) {
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg})
		w.Write(data)
	}
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	add("index.json", index)
	for digest, data := range s.blobs {
		add("blobs/sha256/"+strings.TrimPrefix(digest, "sha256:"), data)
	}
	return &archive, w.Close()
}

// jailed re-runs this program inside a jail as `peers COMMAND ARGS… RESULT`, and reads the JSON that it leaves at RESULT.
func jailed(ctx context.Context, c *common, command string, args []string, result any) error {
	work, err := os.MkdirTemp("/var/tmp", "creto-peers.") // on disk: snapshots go here
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	file := filepath.Join(work, "result.json")
	line := append([]string{self, command}, append(args, "-busybox", c.busybox, "-log", filepath.Join(work, "containerd.log"), "-json", file)...)
	env := []string{"PATH=" + c.path, "HOME=/root", "TERM=dumb"}
	if err := inJail(ctx, filepath.Join(work, "jail"), env, line...); err != nil {
		return fmt.Errorf("%w; containerd's log ends: %s", err, tail(filepath.Join(work, "containerd.log"), 5))
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, result)
}

func tail(path string, n int) string {
	data, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		lines[i] = short(line, 300)
	}
	return strings.Join(lines, " | ")
}

func short(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

func writeJSON(path string, value any) error {
	if path == "" {
		return nil
	}
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
