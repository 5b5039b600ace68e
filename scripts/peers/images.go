package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// An image made here out of a static busybox, byte for byte the same every time.

const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// store holds blobs by digest.
type store struct{ blobs map[string][]byte }

func (s *store) put(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	digest := "sha256:" + hex.EncodeToString(sum[:])
	s.blobs[digest] = data
	return descriptor{MediaType: mediaType, Digest: digest, Size: int64(len(data))}
}

func (s *store) putJSON(mediaType string, value any) descriptor {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // our own maps and strings
	}
	return s.put(mediaType, data)
}

// file is an entry of a layer: a directory ("name/"), a symlink (link set) or a regular file.
type file struct {
	name, link string
	body       []byte
	mode       int64
}

type layer struct {
	blob   descriptor
	diffID string
}

func (s *store) layer(files []file) layer {
	var raw, packed bytes.Buffer
	w := tar.NewWriter(&raw)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, ModTime: time.Unix(1_700_000_000, 0), Format: tar.FormatPAX}
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.body))
		}
		w.WriteHeader(h)
		w.Write(f.body)
	}
	w.Close()
	sum := sha256.Sum256(raw.Bytes())
	z := gzip.NewWriter(&packed)
	z.Write(raw.Bytes())
	z.Close()
	return layer{s.put(typeLayer, packed.Bytes()), "sha256:" + hex.EncodeToString(sum[:])}
}

func (s *store) manifest(l layer) descriptor {
	config := s.putJSON(typeConfig, map[string]any{
		"created": "2023-11-14T22:13:20Z", "os": "linux", "architecture": "amd64",
		"config": map[string]any{"Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "Cmd": []string{"sh"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{l.diffID}},
	})
	return s.putJSON(typeManifest, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest, "config": config, "layers": []descriptor{l.blob},
	})
}

func busyboxFiles(path string) ([]file, error) {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: run `scripts/setup busybox`", err)
	}
	list, err := exec.Command(path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", path, err)
	}
	files := []file{}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "run", "sys", "usr", "usr/bin", "var"} {
		files = append(files, file{name: dir + "/", mode: 0o755})
	}
	files = append(files,
		file{name: "tmp/", mode: 0o1777},
		file{name: "bin/busybox", body: body, mode: 0o755},
		file{name: "etc/passwd", body: []byte("root:x:0:0:root:/root:/bin/sh\n"), mode: 0o644},
		file{name: "etc/group", body: []byte("root:x:0:\n"), mode: 0o644},
	)
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			files = append(files, file{name: "bin/" + applet, link: "busybox", mode: 0o777})
		}
	}
	return files, nil
}
