// What others make of a public log: torchwood reads it and checks its proofs, x/mod its notes.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"strings"

	"filippo.io/torchwood"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

// agentAt keeps a new key for a witness, and prints its fingerprint.
func agentAt(socket string) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		log.Fatal(err)
	}
	listener := must(net.Listen("unix", socket))
	fmt.Println(ssh.FingerprintSHA256(must(ssh.NewSignerFromKey(private)).PublicKey()))
	for {
		connection := must(listener.Accept())
		go agent.ServeAgent(ring, connection)
	}
}

// read checks a log by a policy, and prints its entries and a proof of each.
func read(url, policyFile, vkey string) {
	policy := must(torchwood.ParsePolicy(must(os.ReadFile(policyFile))))
	tiles := must(torchwood.NewTileFetcher(url))
	client := must(torchwood.NewClient(tiles))
	ctx := context.Background()
	signed := must(tiles.ReadEndpoint(ctx, "checkpoint"))
	checkpoint, _, err := torchwood.VerifyCheckpoint(signed, policy)
	if err != nil {
		log.Fatal(err)
	}
	opened := must(note.Open(signed, note.VerifierList(must(note.NewVerifier(vkey)))))
	tree := must(tlog.ParseTree([]byte("go.sum database tree\n" + strings.SplitN(opened.Text, "\n", 2)[1])))
	if tree != checkpoint.Tree {
		log.Fatalf("two trees of one text: %v and %v", tree, checkpoint.Tree)
	}
	entries := []string{}
	for next := int64(0); next < tree.N; {
		for index, entry := range client.Entries(ctx, tree, next) {
			entries, next = append(entries, string(entry)), index+1
		}
		if client.Err() != nil {
			log.Fatal(client.Err())
		}
	}
	proven := 0
	for index := int64(0); index < tree.N; index += 1 + tree.N/7 {
		_, proof, err := client.Entry(ctx, tree, index)
		if err != nil {
			log.Fatal(err)
		}
		formatted := torchwood.FormatProof(index, proof, signed)
		if err := torchwood.VerifyProof(policy, tlog.RecordHash([]byte(entries[index])), formatted); err != nil {
			log.Fatal(err)
		}
		proven++
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{"entries": entries, "proven": proven})
}

func main() {
	log.SetFlags(0)
	switch arguments := os.Args[2:]; os.Args[1] {
	case "agent":
		agentAt(arguments[0])
	case "read":
		read(arguments[0], arguments[1], arguments[2])
	case "verify-proof":
		policy := must(torchwood.ParsePolicy(must(os.ReadFile(arguments[0]))))
		entry := must(os.ReadFile(arguments[1]))
		if err := torchwood.VerifyProof(policy, tlog.RecordHash(entry), must(os.ReadFile(arguments[2]))); err != nil {
			log.Fatal(err)
		}
	case "sign":
		signer := must(note.NewSigner(strings.TrimSpace(string(must(os.ReadFile(arguments[0]))))))
		os.Stdout.Write(must(note.Sign(&note.Note{Text: arguments[1]}, signer)))
	}
}
