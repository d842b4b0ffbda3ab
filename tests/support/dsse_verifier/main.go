// Verifies a DSSE envelope with an Ed25519 key, by the library of in-toto's own Go tools, and prints
// the type of its payload.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/secure-systems-lab/go-securesystemslib/signerverifier"
)

func verify(envelopePath, keyPath string) (string, error) {
	raw, err := os.ReadFile(envelopePath)
	if err != nil {
		return "", err
	}
	var envelope dsse.Envelope
	if err := json.Unmarshal(raw, &envelope); err != nil {
		return "", err
	}
	pem, err := os.ReadFile(keyPath)
	if err != nil {
		return "", err
	}
	key, err := signerverifier.LoadKey(pem)
	if err != nil {
		return "", err
	}
	verifier, err := signerverifier.NewED25519SignerVerifierFromSSLibKey(key)
	if err != nil {
		return "", err
	}
	envelopes, err := dsse.NewEnvelopeVerifier(verifier)
	if err != nil {
		return "", err
	}
	_, err = envelopes.Verify(context.Background(), &envelope)
	return envelope.PayloadType, err
}

func main() {
	kind, err := verify(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Println("refused:", err)
		os.Exit(1)
	}
	fmt.Println("verified:", kind)
}
