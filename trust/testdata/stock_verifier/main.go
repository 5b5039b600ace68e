// Verifies with Go's own checksum-database code (golang.org/x/mod/sumdb), none of ours, what the ledger says: a signed
// tree head, that a record is under it, and that it extends an older one. Reads one JSON object, prints "verified".
package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type claims struct {
	Key         string
	Head, Old   string
	Position    int64
	Record      []byte
	Inclusion   [][]byte
	Consistency [][]byte
}

func main() {
	log.SetFlags(0)
	var claimed claims
	decoder := json.NewDecoder(os.Stdin)
	decoder.DisallowUnknownFields()
	must(decoder.Decode(&claimed))

	verifier, err := note.NewVerifier(claimed.Key)
	must(err)
	size, root := open(claimed.Head, verifier)
	oldSize, oldRoot := open(claimed.Old, verifier)
	must(tlog.CheckRecord(hashes(claimed.Inclusion), size, root, claimed.Position, tlog.RecordHash(claimed.Record)))
	must(tlog.CheckTree(hashes(claimed.Consistency), size, root, oldSize, oldRoot))
	fmt.Printf("verified: %s, record %d of %d, extends %d\n", verifier.Name(), claimed.Position, size, oldSize)
}

// open verifies a note and reads the three lines of a tlog-checkpoint.
func open(text string, verifier note.Verifier) (int64, tlog.Hash) {
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	must(err)
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() || lines[3] != "" {
		log.Fatalf("not a checkpoint of %s: %q", verifier.Name(), opened.Text)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must(err)
	root, err := base64.StdEncoding.DecodeString(lines[2])
	must(err)
	return size, hashes([][]byte{root})[0]
}

func hashes(raw [][]byte) []tlog.Hash {
	all := make([]tlog.Hash, len(raw))
	for n, hash := range raw {
		if len(hash) != tlog.HashSize {
			log.Fatalf("hash %d has %d bytes", n, len(hash))
		}
		copy(all[n][:], hash)
	}
	return all
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
