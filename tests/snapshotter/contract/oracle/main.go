// Answers what containerd's own filters say: one JSON object a line in, one a line out.
// Strings travel as base64, since not everything that containerd reads is UTF-8.
package main

import (
	"bufio"
	"encoding/json"
	"io"
	"log"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/pkg/filters"
	clog "github.com/containerd/log"
)

type request struct {
	Filter []byte
	Infos  []struct {
		Kind, Name, Parent []byte
		Labels             []struct{ Key, Value []byte }
	}
}

type response struct {
	Error   []byte // of the parser; nil when it accepts
	Matches []bool // one an info
}

func main() {
	log.SetFlags(0)
	clog.L.Logger.SetOutput(io.Discard)
	in := json.NewDecoder(bufio.NewReader(os.Stdin))
	out := json.NewEncoder(os.Stdout)
	for {
		var req request
		if err := in.Decode(&req); err == io.EOF {
			return
		} else if err != nil {
			log.Fatal(err)
		}
		var res response
		filter, err := filters.Parse(string(req.Filter))
		if err != nil {
			res.Error = []byte(err.Error())
		} else {
			for _, info := range req.Infos {
				labels := map[string]string{}
				for _, label := range info.Labels {
					labels[string(label.Key)] = string(label.Value)
				}
				res.Matches = append(res.Matches, filter.Match(filters.AdapterFunc(func(path []string) (string, bool) {
					switch path[0] {
					case "kind":
						return string(info.Kind), true
					case "name":
						return string(info.Name), true
					case "parent":
						return string(info.Parent), true
					case "labels":
						value, ok := labels[strings.Join(path[1:], ".")]
						return value, ok
					}
					return "", false
				})))
			}
		}
		if err := out.Encode(res); err != nil {
			log.Fatal(err)
		}
	}
}
