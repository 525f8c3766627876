/* The functions that http2.h describes. */

#include "http2.h"
#include "nghttp2.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PREFIX_SIZE 5               /* bytes before a message: a flag for compression, and the size */
#define MAX_HEADERS_SIZE 65536      /* of a header list, counted as in RFC 9113: each header has 32 bytes more */
#define MAX_TRACE_SIZE 256 /* of traceparent; version 00 has 55 bytes */
#define OUTPUT_SIZE 65536           /* at which http2_take stops */
#define KEPT_SIZE 16384             /* larger buffers are freed when they are empty */
#define SETTINGS_BURST 100          /* frames of SETTINGS that a peer may send at once, because each visits all streams */
#define SETTINGS_RATE 10            /* and in each second */
#define RESETS_BURST 10000          /* streams that a client may cancel at once */
#define RESETS_RATE 1000            /* and in each second */

enum function {
#define INDEX(result, name, ...) INDEX_##name,
    NGHTTP2_REQUIRED(INDEX)
#undef INDEX
    REQUIRED_FUNCTIONS
};

_Static_assert(REQUIRED_FUNCTIONS == HTTP2_REQUIRED_FUNCTIONS, "http2.h has another number");

static struct {
#define MEMBER(result, name, ...) result (*name)(__VA_ARGS__);
    NGHTTP2_REQUIRED(MEMBER) NGHTTP2_OPTIONAL(MEMBER)
#undef MEMBER
} nghttp2;

static const char *const names[] = {
#define NAME(result, name, ...) "nghttp2_" #name,
    NGHTTP2_REQUIRED(NAME) NGHTTP2_OPTIONAL(NAME)
#undef NAME
};

_Static_assert(sizeof(nghttp2) == sizeof(names), "a function pointer has another size than a pointer to data");

struct buffer {
    char *data;
    size_t size;
    size_t capacity;
};

struct stream {
    struct stream *previous;
    struct stream *next;
    int32_t id;
    int32_t events; /* bits of events that the caller has not seen */
    int32_t why;
    int32_t status;
    double timeout;
    size_t headers_size;
    size_t unconsumed; /* bytes of the connection's receive window that the request holds */
    size_t message_size;
    size_t prefix_size;
    unsigned char prefix[PREFIX_SIZE];
    bool grpc;     /* the content type is gRPC's */
    bool opened;   /* the first headers are complete */
    bool known;    /* the caller has seen an event */
    bool touched;  /* in connection->touched or connection->delivered */
    bool ended;    /* the peer has sent all */
    bool closed;   /* libnghttp2 has forgotten the stream */
    bool answered; /* the first headers are submitted */
    bool finished; /* the status is given */
    bool awaited;  /* the caller expects HTTP2_ROOM */
    struct buffer path;
    struct buffer trace;
    struct buffer text; /* of a bad timeout, or of the status */
    struct buffer in;
    struct buffer out;
    size_t out_sent; /* bytes of out that libnghttp2 took */
};

struct streams {
    struct stream **items;
    size_t count;
    size_t capacity;
};

struct connection {
    struct http2_connection public;
    nghttp2_session *session;
    struct stream first; /* the head of the list of all streams */
    struct streams touched;
    struct streams delivered; /* the streams of public.events */
    size_t events_capacity;
    struct buffer output;
    bool client;
    bool failed; /* the peer broke the protocol */
    uint32_t max_request;
    size_t max_unread;
    size_t unread;
    double settings; /* frames that the peer may send now */
    struct timespec settings_time;
};

static struct connection *private(struct http2_connection *connection)
{
    return (struct connection *)connection;
}

/* -- memory */

/* Return whether *items has room for count + 1 items of the given size, after growing it if needed. */
static bool reserve(void **items, size_t *capacity, size_t needed, size_t item_size)
{
    if (needed <= *capacity)
        return true;
    size_t grown = *capacity ? 2 * *capacity : 64;
    if (grown < needed)
        grown = needed;
    void *data = realloc(*items, grown * item_size);
    if (!data)
        return false;
    *items = data;
    *capacity = grown;
    return true;
}

static bool append(struct buffer *buffer, const void *data, size_t size)
{
    if (!reserve((void **)&buffer->data, &buffer->capacity, buffer->size + size, 1))
        return false;
    if (size)
        memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return true;
}

/* Replace the content by a string of the given size, and a NUL byte. */
static bool set_text(struct buffer *buffer, const void *text, size_t size)
{
    buffer->size = 0;
    return append(buffer, text, size) && append(buffer, "", 1);
}

static void release(struct buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct buffer){0};
}

static void empty(struct buffer *buffer)
{
    buffer->size = 0;
    if (buffer->capacity > KEPT_SIZE)
        release(buffer);
}

/* -- streams */

static struct stream *add_stream(struct connection *connection)
{
    struct stream *stream = calloc(1, sizeof(*stream));
    if (stream) {
        stream->timeout = stream->status = -1;
        stream->previous = &connection->first;
        stream->next = connection->first.next;
        stream->next->previous = stream->previous->next = stream;
    }
    return stream;
}

static void free_stream(struct stream *stream)
{
    stream->previous->next = stream->next;
    stream->next->previous = stream->previous;
    release(&stream->path);
    release(&stream->trace);
    release(&stream->text);
    release(&stream->in);
    release(&stream->out);
    free(stream);
}

static struct stream *find(struct connection *connection, int32_t id)
{
    return nghttp2.session_get_stream_user_data(connection->session, id);
}

/* Add an event of the stream; with kind 0, only look at the stream again. */
static int touch(struct connection *connection, struct stream *stream, int32_t kind)
{
    stream->events |= kind;
    if (stream->touched)
        return 0;
    struct streams *touched = &connection->touched;
    if (!reserve((void **)&touched->items, &touched->capacity, touched->count + 1, sizeof(*touched->items)))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    touched->items[touched->count++] = stream;
    stream->touched = true;
    return 0;
}

/* Drop the request, and return its part of the connection's receive window. */
static void drop_request(struct connection *connection, struct stream *stream)
{
    if (stream->unconsumed)
        nghttp2.session_consume_connection(connection->session, stream->unconsumed);
    stream->unconsumed = 0;
    release(&stream->in);
}

static int refuse(struct connection *connection, struct stream *stream, int32_t why)
{
    drop_request(connection, stream);
    stream->why = why;
    return touch(connection, stream, HTTP2_REFUSED);
}

static nghttp2_nv header(const char *name, const char *value, uint8_t flags)
{
    return (nghttp2_nv){(uint8_t *)name, (uint8_t *)value, strlen(name), strlen(value), flags};
}

/* Answer a request that is not gRPC, without the caller. */
static int refuse_type(struct connection *connection, struct stream *stream)
{
    nghttp2_nv headers[] = {header(":status", "415", NGHTTP2_NV_FLAG_NONE)};
    stream->answered = stream->finished = true;
    nghttp2.submit_response(connection->session, stream->id, headers, 1, NULL);
    return 0;
}

static int end_request(struct connection *connection, struct stream *stream)
{
    stream->ended = true;
    if (connection->client)
        return touch(connection, stream, HTTP2_ENDED);
    if (!stream->grpc)
        return refuse_type(connection, stream);
    if (stream->why || stream->finished)
        return 0;
    if (stream->prefix_size < PREFIX_SIZE || stream->in.size < stream->message_size)
        return refuse(connection, stream, HTTP2_INCOMPLETE);
    return touch(connection, stream, HTTP2_ENDED);
}

/* -- headers */

static bool is(const uint8_t *data, size_t size, const char *text)
{
    return size == strlen(text) && memcmp(data, text, size) == 0;
}

static bool is_grpc(const uint8_t *value, size_t size)
{
    static const char type[] = "application/grpc";
    size_t length = sizeof(type) - 1;
    return size >= length && memcmp(value, type, length) == 0 &&
           (size == length || value[length] == '+' || value[length] == ';');
}

/* Return the seconds of a grpc-timeout, 1 to 8 digits and a unit, or -1. */
static double parse_timeout(const uint8_t *value, size_t size)
{
    static const struct {
        char unit;
        double seconds;
    } units[] = {{'H', 3600}, {'M', 60}, {'S', 1}, {'m', 1e-3}, {'u', 1e-6}, {'n', 1e-9}};
    double number = 0;
    if (size < 2 || size > 9)
        return -1;
    for (size_t i = 0; i < size - 1; i++) {
        if (value[i] < '0' || value[i] > '9')
            return -1;
        number = number * 10 + (value[i] - '0');
    }
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
        if (units[i].unit == value[size - 1])
            return number * units[i].seconds;
    return -1;
}

/* Return a status, or 2 (UNKNOWN) for other text. */
static int32_t parse_status(const uint8_t *value, size_t size)
{
    int32_t number = 0;
    if (size < 1 || size > 4)
        return 2;
    for (size_t i = 0; i < size; i++) {
        if (value[i] < '0' || value[i] > '9')
            return 2;
        number = number * 10 + (value[i] - '0');
    }
    return number;
}

static int on_begin_headers(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct connection *connection = user;
    if (connection->client || find(connection, frame->hd.stream_id))
        return 0; /* headers of an answer, or trailers */
    struct stream *stream = add_stream(connection);
    if (!stream)
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    stream->id = frame->hd.stream_id;
    nghttp2.session_set_stream_user_data(session, stream->id, stream);
    return 0;
}

static int on_server_header(struct stream *stream, const uint8_t *name, size_t name_size, const uint8_t *value,
                            size_t value_size)
{
    bool kept = true;
    if (is(name, name_size, ":path"))
        kept = set_text(&stream->path, value, value_size);
    else if (is(name, name_size, "content-type"))
        stream->grpc = is_grpc(value, value_size);
    else if (is(name, name_size, "traceparent") && value_size <= MAX_TRACE_SIZE)
        kept = set_text(&stream->trace, value, value_size);
    else if (is(name, name_size, "grpc-timeout")) {
        stream->timeout = parse_timeout(value, value_size);
        if (stream->timeout < 0) {
            stream->why = HTTP2_BAD_TIMEOUT;
            kept = set_text(&stream->text, value, value_size < 64 ? value_size : 64);
        }
    }
    return kept ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_client_header(struct stream *stream, const uint8_t *name, size_t name_size, const uint8_t *value,
                            size_t value_size)
{
    if (is(name, name_size, "grpc-status"))
        stream->status = parse_status(value, value_size);
    else if (is(name, name_size, "grpc-message") && !set_text(&stream->text, value, value_size))
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    return 0;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *user)
{
    struct connection *connection = user;
    struct stream *stream = find(connection, frame->hd.stream_id);
    (void)session, (void)flags;
    if (!stream)
        return 0;
    stream->headers_size += name_size + value_size + 32;
    if (stream->headers_size > MAX_HEADERS_SIZE)
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; /* resets the stream */
    if (connection->client)
        return on_client_header(stream, name, name_size, value, value_size);
    if (stream->opened)
        return 0; /* a trailer */
    return on_server_header(stream, name, name_size, value, value_size);
}

static int on_headers(struct connection *connection, struct stream *stream)
{
    if (connection->client || stream->opened)
        return 0;
    stream->opened = true;
    if (!stream->grpc)
        return 0;
    return touch(connection, stream, stream->why ? HTTP2_OPENED | HTTP2_REFUSED : HTTP2_OPENED);
}

/* -- frames of the peer */

static void set_error(struct connection *connection, const char *error)
{
    if (!connection->public.error[0])
        snprintf(connection->public.error, sizeof(connection->public.error), "%s", error);
}

/* Return whether the peer may send one more SETTINGS frame now. */
static bool take_settings(struct connection *connection)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    struct timespec *then = &connection->settings_time;
    connection->settings += (now.tv_sec - then->tv_sec + (now.tv_nsec - then->tv_nsec) / 1e9) * SETTINGS_RATE;
    if (connection->settings > SETTINGS_BURST)
        connection->settings = SETTINGS_BURST;
    *then = now;
    return --connection->settings >= 0;
}

static int on_frame_recv(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct connection *connection = user;
    (void)session;
    if (frame->hd.type == NGHTTP2_SETTINGS && !(frame->hd.flags & NGHTTP2_FLAG_ACK) && !take_settings(connection)) {
        set_error(connection, "too many SETTINGS frames");
        return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
        return 0;
    struct stream *stream = find(connection, frame->hd.stream_id);
    if (!stream)
        return 0;
    int result = 0;
    if (frame->hd.type == NGHTTP2_HEADERS)
        result = on_headers(connection, stream);
    if (result == 0 && frame->hd.flags & NGHTTP2_FLAG_END_STREAM)
        result = end_request(connection, stream);
    return result;
}

/* Take the missing part of the prefix from *data. */
static void take_prefix(struct stream *stream, const uint8_t **data, size_t *size)
{
    while (*size && stream->prefix_size < PREFIX_SIZE) {
        stream->prefix[stream->prefix_size++] = *(*data)++;
        (*size)--;
    }
    const unsigned char *prefix = stream->prefix;
    if (stream->prefix_size == PREFIX_SIZE)
        stream->message_size =
            (size_t)prefix[1] << 24 | (size_t)prefix[2] << 16 | (size_t)prefix[3] << 8 | (size_t)prefix[4];
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t id, const uint8_t *data, size_t size, void *user)
{
    struct connection *connection = user;
    struct stream *stream = find(connection, id);
    (void)flags;
    if (connection->client)
        return !stream || append(&stream->in, data, size) ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
    if (!stream || stream->finished || stream->why || !stream->grpc) {
        nghttp2.session_consume_connection(session, size);
        return 0;
    }
    stream->unconsumed += size;
    take_prefix(stream, &data, &size);
    if (stream->prefix_size < PREFIX_SIZE)
        return 0;
    if (stream->prefix[0])
        return refuse(connection, stream, HTTP2_COMPRESSED);
    if (stream->message_size > connection->max_request)
        return refuse(connection, stream, HTTP2_TOO_LARGE);
    if (stream->in.size + size > stream->message_size)
        return refuse(connection, stream, HTTP2_SEVERAL);
    return append(&stream->in, data, size) ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_stream_close(nghttp2_session *session, int32_t id, uint32_t code, void *user)
{
    struct connection *connection = user;
    struct stream *stream = find(connection, id);
    (void)session, (void)code;
    if (!stream)
        return 0;
    connection->unread -= stream->out.size - stream->out_sent;
    release(&stream->out);
    stream->closed = true;
    if (connection->client && stream->ended)
        return touch(connection, stream, 0); /* HTTP2_ENDED comes or came */
    drop_request(connection, stream);
    /* A call that the caller has not seen makes no event. */
    stream->events = connection->client || (stream->known && !stream->finished) ? HTTP2_CLOSED : 0;
    return touch(connection, stream, 0);
}

static int on_invalid_frame(nghttp2_session *session, const nghttp2_frame *frame, int code, void *user)
{
    char error[80];
    (void)session;
    snprintf(error, sizeof(error), "a frame of type %d: %s", frame->hd.type, nghttp2.strerror(code));
    set_error(user, error);
    return 0;
}

/* -- frames to the peer */

static int on_frame_send(nghttp2_session *session, const nghttp2_frame *frame, void *user)
{
    struct connection *connection = user;
    if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code != NGHTTP2_NO_ERROR)
        connection->failed = true;
    bool ends = (frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA) &&
                frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    /* A client whose incomplete request is answered has to send no more of it. */
    if (ends && !connection->client && nghttp2.session_get_stream_remote_close(session, frame->hd.stream_id) == 0)
        nghttp2.submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_NO_ERROR);
    return 0;
}

static size_t trailers(const struct stream *stream, char number[12], nghttp2_nv *headers)
{
    size_t count = 0;
    snprintf(number, 12, "%d", stream->status);
    headers[count++] = header("grpc-status", number, NGHTTP2_NV_FLAG_NONE);
    if (stream->text.size > 1) /* without NO_INDEX each text would go into the table of headers */
        headers[count++] = header("grpc-message", stream->text.data, NGHTTP2_NV_FLAG_NO_INDEX);
    return count;
}

static ssize_t read_output(nghttp2_session *session, int32_t id, uint8_t *data, size_t size, uint32_t *flags,
                           nghttp2_data_source *source, void *user)
{
    struct connection *connection = user;
    struct stream *stream = source->ptr;
    size_t left = stream->out.size - stream->out_sent;
    if (size > left)
        size = left;
    if (size)
        memcpy(data, stream->out.data + stream->out_sent, size);
    stream->out_sent += size;
    connection->unread -= size;
    if (size < left)
        return (ssize_t)size;
    empty(&stream->out);
    stream->out_sent = 0;
    if (stream->finished) {
        *flags |= NGHTTP2_DATA_FLAG_EOF;
        if (!connection->client) {
            char number[12];
            nghttp2_nv headers[2];
            *flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
            nghttp2.submit_trailer(session, id, headers, trailers(stream, number, headers));
        }
        return (ssize_t)size;
    }
    if (stream->awaited) {
        stream->awaited = false;
        if (touch(connection, stream, HTTP2_ROOM) < 0)
            return NGHTTP2_ERR_CALLBACK_FAILURE;
    }
    return size ? (ssize_t)size : NGHTTP2_ERR_DEFERRED;
}

/* Submit the first headers, with trailers if there is no message. */
static void answer(struct connection *connection, struct stream *stream)
{
    char number[12];
    nghttp2_nv headers[4] = {
        header(":status", "200", NGHTTP2_NV_FLAG_NONE),
        header("content-type", "application/grpc", NGHTTP2_NV_FLAG_NONE),
    };
    nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = read_output};
    bool alone = stream->finished && !stream->out.size;
    size_t count = alone ? 2 + trailers(stream, number, headers + 2) : 2;
    stream->answered = true;
    nghttp2.submit_response(connection->session, stream->id, headers, count, alone ? NULL : &provider);
}

static void resume(struct connection *connection, struct stream *stream)
{
    if (stream->answered)
        nghttp2.session_resume_data(connection->session, stream->id);
    else
        answer(connection, stream);
}

static void end_connection(struct connection *connection, const char *error)
{
    set_error(connection, error);
    connection->failed = connection->public.over = true;
}

static bool add_message(struct connection *connection, struct stream *stream, const char *message, size_t size)
{
    const char prefix[PREFIX_SIZE] = {0, (char)(size >> 24), (char)(size >> 16), (char)(size >> 8), (char)size};
    size_t before = stream->out.size;
    if (!append(&stream->out, prefix, PREFIX_SIZE) || !append(&stream->out, message, size)) {
        end_connection(connection, "no memory");
        return false;
    }
    connection->unread += stream->out.size - before;
    if (!connection->client && connection->unread > connection->max_unread)
        end_connection(connection, "the client does not read its answers");
    return true;
}

/* -- the connection */

static bool set_callbacks(nghttp2_session_callbacks **callbacks)
{
    if (nghttp2.session_callbacks_new(callbacks) != 0)
        return false;
    nghttp2.session_callbacks_set_on_begin_headers_callback(*callbacks, on_begin_headers);
    nghttp2.session_callbacks_set_on_header_callback(*callbacks, on_header);
    nghttp2.session_callbacks_set_on_frame_recv_callback(*callbacks, on_frame_recv);
    nghttp2.session_callbacks_set_on_frame_send_callback(*callbacks, on_frame_send);
    nghttp2.session_callbacks_set_on_invalid_frame_recv_callback(*callbacks, on_invalid_frame);
    nghttp2.session_callbacks_set_on_data_chunk_recv_callback(*callbacks, on_data);
    nghttp2.session_callbacks_set_on_stream_close_callback(*callbacks, on_stream_close);
    return true;
}

static bool set_options(nghttp2_option **option, uint32_t max_streams)
{
    if (nghttp2.option_new(option) != 0)
        return false;
    nghttp2.option_set_no_closed_streams(*option, 1); /* they would be kept for priorities only */
    if (!max_streams)
        return true;
    nghttp2.option_set_no_auto_window_update(*option, 1);
    if (nghttp2.option_set_stream_reset_rate_limit)
        nghttp2.option_set_stream_reset_rate_limit(*option, RESETS_BURST, RESETS_RATE);
    if (nghttp2.option_set_max_outbound_queue_size)
        nghttp2.option_set_max_outbound_queue_size(*option, 2 * (size_t)max_streams + 1000);
    return true;
}

static struct http2_connection *new_connection(bool client, uint32_t max_streams, int32_t window,
                                               const nghttp2_settings_entry *settings, size_t count)
{
    nghttp2_session_callbacks *callbacks = NULL;
    nghttp2_option *option = NULL;
    struct connection *connection = calloc(1, sizeof(*connection));
    if (!connection)
        return NULL;
    connection->client = client;
    connection->first.next = connection->first.previous = &connection->first;
    bool made = set_callbacks(&callbacks) && set_options(&option, max_streams);
    if (made && client)
        made = nghttp2.session_client_new2(&connection->session, callbacks, connection, option) == 0;
    else if (made)
        made = nghttp2.session_server_new2(&connection->session, callbacks, connection, option) == 0;
    if (option)
        nghttp2.option_del(option);
    if (callbacks)
        nghttp2.session_callbacks_del(callbacks);
    if (!made || nghttp2.submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, count) != 0 ||
        nghttp2.session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, window) != 0) {
        http2_free(&connection->public);
        return NULL;
    }
    return &connection->public;
}

/* Free the requests of the events that the caller has seen, and all streams that have ended. */
static void settle(struct connection *connection)
{
    for (size_t i = 0; i < connection->delivered.count; i++) {
        struct stream *stream = connection->delivered.items[i];
        if (stream->ended)
            drop_request(connection, stream);
        if (stream->closed)
            free_stream(stream);
    }
    connection->delivered.count = 0;
    connection->public.count = 0;
}

/* Make the events of the touched streams. */
static void deliver(struct connection *connection)
{
    struct http2_connection *public = &connection->public;
    struct streams touched = connection->touched;
    connection->touched = connection->delivered;
    connection->delivered = touched;
    for (size_t i = 0; i < touched.count; i++)
        touched.items[i]->touched = false;
    if (!reserve((void **)&public->events, &connection->events_capacity, touched.count, sizeof(*public->events))) {
        end_connection(connection, "no memory");
        return;
    }
    for (size_t i = 0; i < touched.count; i++) {
        struct stream *stream = touched.items[i];
        if (!stream->events)
            continue;
        bool refused = stream->events & HTTP2_REFUSED;
        public->events[public->count++] = (struct http2_event){
            .stream = stream->id,
            .kind = stream->events,
            .why = stream->why,
            .status = stream->status,
            .timeout = stream->timeout,
            .path = stream->path.size ? stream->path.data : "",
            .trace = stream->trace.size ? stream->trace.data : "",
            .body = stream->in.data,
            .size = refused ? stream->message_size : stream->in.size,
            .text = stream->text.size ? stream->text.data : "",
        };
        stream->known = true;
        stream->events = 0;
    }
}

static void look_whether_over(struct connection *connection)
{
    struct http2_connection *public = &connection->public;
    if (!nghttp2.session_want_read(connection->session) && !nghttp2.session_want_write(connection->session))
        public->over = true;
    if (public->over && connection->failed)
        set_error(connection, "the peer broke HTTP/2");
    else if (public->over)
        public->error[0] = 0; /* an error of a stream */
}

const char *http2_function(size_t index)
{
    return index < sizeof(names) / sizeof(names[0]) ? names[index] : NULL;
}

void http2_bind(size_t index, void *address)
{
    memcpy((char *)&nghttp2 + index * sizeof(address), &address, sizeof(address));
}

struct http2_connection *http2_server(uint32_t max_streams, uint32_t max_request, int32_t window, size_t max_unread)
{
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, max_streams},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, max_request + PREFIX_SIZE},
        {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, MAX_HEADERS_SIZE},
        {NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES, 1},
    };
    struct http2_connection *public =
        new_connection(false, max_streams, window, settings, sizeof(settings) / sizeof(settings[0]));
    if (public) {
        private(public)->max_request = max_request;
        private(public)->max_unread = max_unread;
    }
    return public;
}

struct http2_connection *http2_client(int32_t window)
{
    const nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, (uint32_t)window},
    };
    return new_connection(true, 0, window, settings, sizeof(settings) / sizeof(settings[0]));
}

void http2_free(struct http2_connection *public)
{
    struct connection *connection = private(public);
    if (connection->session)
        nghttp2.session_del(connection->session); /* without callbacks */
    while (connection->first.next != &connection->first)
        free_stream(connection->first.next);
    free(connection->touched.items);
    free(connection->delivered.items);
    release(&connection->output);
    free(public->events);
    free(connection);
}

int64_t http2_receive(struct http2_connection *public, const char *data, size_t size)
{
    struct connection *connection = private(public);
    settle(connection);
    ssize_t result = nghttp2.session_mem_recv(connection->session, (const uint8_t *)data, size);
    if (result < 0)
        end_connection(connection, nghttp2.strerror((int)result));
    deliver(connection);
    look_whether_over(connection);
    return (int64_t)public->count;
}

int64_t http2_take(struct http2_connection *public)
{
    struct connection *connection = private(public);
    settle(connection);
    empty(&connection->output);
    while (connection->output.size < OUTPUT_SIZE) {
        const uint8_t *data;
        ssize_t size = nghttp2.session_mem_send(connection->session, &data);
        if (size == 0)
            break;
        if (size < 0 || !append(&connection->output, data, (size_t)size)) {
            end_connection(connection, size < 0 ? nghttp2.strerror((int)size) : "no memory");
            break;
        }
    }
    deliver(connection);
    look_whether_over(connection);
    public->output = connection->output.data;
    return (int64_t)connection->output.size;
}

/* Return the stream, unless it or the connection has ended. */
static struct stream *find_open(struct connection *connection, int32_t id)
{
    struct stream *stream = connection->public.over ? NULL : find(connection, id);
    return stream && !stream->finished ? stream : NULL;
}

void http2_reply(struct http2_connection *public, int32_t id, const char *message, size_t size)
{
    struct connection *connection = private(public);
    struct stream *stream = find_open(connection, id);
    if (!stream || !add_message(connection, stream, message, size))
        return;
    stream->status = 0;
    stream->finished = true;
    answer(connection, stream);
}

void http2_send(struct http2_connection *public, int32_t id, const char *message, size_t size)
{
    /* Otherwise a small reply would wait behind all messages of this stream. */
    const nghttp2_extpri later = {.urgency = 5, .inc = 1};
    struct connection *connection = private(public);
    struct stream *stream = find_open(connection, id);
    if (!stream || !add_message(connection, stream, message, size))
        return;
    if (!stream->answered && nghttp2.session_change_extpri_stream_priority)
        nghttp2.session_change_extpri_stream_priority(connection->session, id, &later, 1);
    stream->awaited = true;
    resume(connection, stream);
}

void http2_finish(struct http2_connection *public, int32_t id, int status, const char *text)
{
    struct connection *connection = private(public);
    struct stream *stream = find_open(connection, id);
    if (!stream)
        return;
    drop_request(connection, stream);
    if (!set_text(&stream->text, text, strlen(text)))
        end_connection(connection, "no memory");
    stream->status = status;
    stream->finished = true;
    resume(connection, stream);
}

int32_t http2_request(struct http2_connection *public, const char *path, const char *headers, size_t count,
                      const char *message, size_t size)
{
    struct connection *connection = private(public);
    nghttp2_nv all[16] = {
        header(":method", "POST", NGHTTP2_NV_FLAG_NONE),
        header(":scheme", "http", NGHTTP2_NV_FLAG_NONE),
        header(":path", path, NGHTTP2_NV_FLAG_NONE),
        header(":authority", "localhost", NGHTTP2_NV_FLAG_NONE),
        header("content-type", "application/grpc", NGHTTP2_NV_FLAG_NONE),
        header("te", "trailers", NGHTTP2_NV_FLAG_NONE),
    };
    size_t used = 6;
    for (; count && used < sizeof(all) / sizeof(all[0]); count--) {
        const char *value = headers + strlen(headers) + 1;
        all[used++] = header(headers, value, NGHTTP2_NV_FLAG_NONE);
        headers = value + strlen(value) + 1;
    }
    struct stream *stream = add_stream(connection);
    if (!stream || !add_message(connection, stream, message, size))
        return -1;
    nghttp2_data_provider provider = {.source.ptr = stream, .read_callback = read_output};
    stream->finished = true;
    stream->id = nghttp2.submit_request(connection->session, NULL, all, used, &provider, stream);
    return stream->id < 0 ? -1 : stream->id;
}

void http2_terminate(struct http2_connection *public)
{
    nghttp2.session_terminate_session(private(public)->session, NGHTTP2_NO_ERROR);
}
